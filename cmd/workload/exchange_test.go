package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// projected is a token of a service account, signed with that key.
func projected(kid string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256","kid":"`+kid+`"}`)) + "." + encode([]byte(`{"iat":1795240800,"exp":1795241400}`)) + "." + encode([]byte("signature"))
}

func TestExchangeReadsTheFileAnewAndShowsNoToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	write(projected("one"))
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if r.URL.Path != "/tenant-1/oauth2/v2.0/token" || r.FormValue("client_id") != "client-1" || r.FormValue("grant_type") != "client_credentials" {
			t.Errorf("%s %v", r.URL, r.Form)
		}
		switch asked {
		case 1:
			write(projected("two"))
			_, _ = io.WriteString(w, `{"access_token":"`+jwt(testClaims)+`"}`)
		case 2:
			if r.FormValue("client_assertion") != projected("two") {
				t.Error("the file was not read anew")
			}
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client","error_description":"AADSTS7000272: no"}`)
			write("")
		case 3:
			_, _ = io.WriteString(w, jwt(testClaims)) // in the wrong form: it must not be shown
			if err := os.Remove(file); err != nil {
				t.Error(err)
			}
		}
	}))
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AZURE_TENANT_ID": "tenant-1", "AZURE_CLIENT_ID": "client-1", "AZURE_AUTHORITY_HOST": server.URL + "/", "AZURE_FEDERATED_TOKEN_FILE": file,
	} {
		t.Setenv(name, value)
	}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"exchange", "--count", "4", "--pause", "1ms"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, &stderr)
	}
	for _, token := range []string{jwt(testClaims), projected("one"), projected("two")} {
		if strings.Contains(stdout.String(), strings.Split(token, ".")[1]) {
			t.Errorf("a token is printed: %s", &stdout)
		}
	}
	var got []exchanged
	for d := json.NewDecoder(&stdout); d.More(); {
		var e exchanged
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	issued, ends := time.Unix(1795240800, 0).UTC(), time.Unix(1795241400, 0).UTC()
	want := []exchanged{
		{Status: 200, KeyID: "one", Issued: &issued, Ends: &ends, Identity: &identity{AppID: "client-1", ObjectID: "object-1", TenantID: "tenant-1", ResourceID: "/subscriptions/s/identity-1"}},
		{Status: 401, KeyID: "two", Issued: &issued, Ends: &ends, Error: "AADSTS7000272: no"},
		{Status: 200, Error: "the answer is no JSON"},
		{Error: "open " + file + ": no such file or directory"},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(exchanged{}, "At", "Millis")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestExchangeExplainsWrongCalls(t *testing.T) {
	for _, name := range []string{"AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_AUTHORITY_HOST", "AZURE_FEDERATED_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	for _, args := range [][]string{{"exchange"}, {"exchange", "x"}, {"exchange", "--timeout", "0s"}, {"exchange", "--vault", "v"}} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), args, &stdout, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%v: exit %d: %s", args, code, &stderr)
		}
	}
}
