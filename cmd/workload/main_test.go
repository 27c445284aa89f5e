package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func jwt(claims string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(claims)) + "." + enc([]byte("signature"))
}

const testClaims = `{"appid":"client-1","oid":"object-1","tid":"tenant-1","xms_mirid":"/subscriptions/s/identity-1"}`

// cloud is a metadata service and a vault.
type cloud struct {
	*httptest.Server
	refusals atomic.Int32 // how many requests for a token are refused first
	tokens   atomic.Int32
}

func newCloud(t *testing.T) *cloud {
	c := &cloud{}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /token/{$}", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata") != "true" || r.URL.Query().Get("resource") == "" || r.URL.Query().Get("api-version") == "" {
			http.Error(w, "a wrong request: "+r.URL.String(), http.StatusBadRequest)
			return
		}
		if c.refusals.Add(-1) >= 0 {
			http.Error(w, "no identity is assigned", http.StatusNotFound)
			return
		}
		c.tokens.Add(1)
		_, _ = io.WriteString(w, `{"access_token":"`+jwt(testClaims)+`","token_type":"Bearer"}`)
	})
	mux.HandleFunc("GET /secrets/{name}", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer "+jwt(testClaims):
			http.Error(w, "no token", http.StatusUnauthorized)
		case r.PathValue("name") == "forbidden":
			http.Error(w, `{"error":{"code":"Forbidden","innererror":{"code":"ForbiddenByRbac"}}}`, http.StatusForbidden)
		default:
			_, _ = io.WriteString(w, `{"value":"hunter2","id":"x"}`)
		}
	})
	c.Server = httptest.NewServer(mux)
	t.Cleanup(c.Close)
	return c
}

func call(t *testing.T, args ...string) (report, int, string, string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, &stdout, &stderr)
	var r report
	if stdout.Len() > 0 {
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil || strings.Count(stdout.String(), "\n") != 1 {
			t.Fatalf("not one line of JSON: %v\n%s", err, &stdout)
		}
	}
	for _, out := range []string{stdout.String(), stderr.String()} {
		if strings.Contains(out, base64.RawURLEncoding.EncodeToString([]byte(testClaims))) {
			t.Errorf("a token is printed: %s", out)
		}
	}
	return r, code, stdout.String(), stderr.String()
}

func TestIMDSReadsTheSecretAndShowsOnlyItsDigest(t *testing.T) {
	c := newCloud(t)
	c.refusals.Store(2)
	before := time.Now()
	got, code, out, stderr := call(t, "imds", "--url", c.URL+"/token/", "--vault", c.URL, "--secret", "s", "--pause", "1ms")
	want := report{
		Door: "1 IMDS", OK: true, Resource: "https://vault.azure.net", Secret: "7 bytes, sha256 f52fbd32",
		Identity: &identity{AppID: "client-1", ObjectID: "object-1", TenantID: "tenant-1", ResourceID: "/subscriptions/s/identity-1"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(report{}), cmpopts.IgnoreFields(report{}, "FirstToken", "FirstTokenMillis", "SecondTokenMillis")); diff != "" || code != 0 {
		t.Errorf("exit %d\n%s", code, diff)
	}
	if got.FirstToken == nil || got.FirstToken.Before(before.Truncate(time.Second)) || got.FirstTokenMillis <= 0 || got.SecondTokenMillis <= 0 || c.tokens.Load() != 2 {
		t.Errorf("%d tokens, times %v %v %v", c.tokens.Load(), got.FirstToken, got.FirstTokenMillis, got.SecondTokenMillis)
	}
	if strings.Contains(out, "hunter2") {
		t.Errorf("the secret is printed: %s", out)
	}
	if strings.Count(stderr, "attempt ") != 2 || !strings.Contains(stderr, "attempt 2: the metadata service answered 404: no identity is assigned") {
		t.Errorf("attempts are not told: %s", stderr)
	}
}

func TestThePersonMayAskToSeeTheSecret(t *testing.T) {
	c := newCloud(t)
	got, code, _, _ := call(t, "imds", "--url", c.URL+"/token/", "--vault", c.URL+"/", "--secret", "s", "--print-secret")
	if got.Value != "hunter2" || code != 0 {
		t.Errorf("exit %d, value %q", code, got.Value)
	}
}

func TestARefusalIsReportedWithItsReason(t *testing.T) {
	c := newCloud(t)
	tests := map[string]struct {
		refusals   int32
		secret     string
		wantStatus int
		wantError  string
	}{
		"no token": {99, "s", 404, "the metadata service answered 404: no identity is assigned"},
		"no role":  {0, "forbidden", 403, "ForbiddenByRbac"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c.refusals.Store(tc.refusals)
			got, code, _, _ := call(t, "imds", "--url", c.URL+"/token/", "--vault", c.URL, "--secret", tc.secret, "--wait", "0")
			if code != 1 || got.OK || got.Status != tc.wantStatus || !strings.Contains(got.Error, tc.wantError) {
				t.Errorf("exit %d, status %d, error %q", code, got.Status, got.Error)
			}
		})
	}
}

func TestAnAnswerThatIsNoTokenIsNotShown(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "access_token="+jwt(testClaims))
	}))
	t.Cleanup(server.Close)
	got, code, _, _ := call(t, "imds", "--url", server.URL, "--vault", server.URL, "--secret", "s", "--wait", "0")
	if code != 1 || !strings.Contains(got.Error, "no JSON") {
		t.Errorf("exit %d, error %q", code, got.Error)
	}
}

func TestSDKReportsWhyThereIsNoCredential(t *testing.T) {
	c := newCloud(t)
	// The credential named here is the only one of the chain that is tried.
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
	for _, name := range []string{"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_USERNAME"} {
		t.Setenv(name, "")
	}
	got, code, _, stderr := call(t, "sdk", "--vault", c.URL, "--secret", "s", "--wait", "0")
	if code != 1 || got.Door != "2 Entra direct" || !strings.Contains(got.Error, "EnvironmentCredential") || !strings.Contains(stderr, "attempt 1") {
		t.Errorf("exit %d, report %+v\n%s", code, got, stderr)
	}
}

func TestWrongCallsAreExplained(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no verb":         {nil, "usage: workload"},
		"an unknown verb": {[]string{"curl"}, `unknown verb "curl"`},
		"no vault":        {[]string{"imds", "--secret", "s"}, "--vault and --secret are required"},
		"an argument":     {[]string{"sdk", "--vault", "v", "--secret", "s", "x"}, "every setting is a flag"},
		"a foreign flag":  {[]string{"sdk", "--url", "x"}, "flag provided but not defined"},
	} {
		t.Run(name, func(t *testing.T) {
			_, code, _, stderr := call(t, tc.args...)
			if code != 2 || !strings.Contains(stderr, tc.want) {
				t.Errorf("exit %d: %s", code, stderr)
			}
		})
	}
}
