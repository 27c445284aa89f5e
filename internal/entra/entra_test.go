package entra

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serve sends one request through f and returns the answer.
func serve(t *testing.T, req func(base string) *http.Request, f http.HandlerFunc) (*http.Response, string) {
	t.Helper()
	s := httptest.NewServer(f)
	defer s.Close()
	resp, err := s.Client().Do(req(s.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func get(t *testing.T) func(string) *http.Request {
	return func(base string) *http.Request {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base, nil)
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
}

func TestParseTokenRequest(t *testing.T) {
	const id, secret = "11111111-2222-3333-4444-555555555555", "s~e+c r%et"
	for name, tt := range map[string]struct {
		version Version
		form    url.Values
		basic   [2]string
		want    TokenRequest
		code    int
	}{
		"a v2 request": {V2, url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}, "scope": {"a b"}, "resource": {"ignored"}, "claims": {"x"}}, [2]string{},
			TokenRequest{Version: V2, GrantType: "client_credentials", ClientID: id, Secret: secret, Scope: "a b"}, 0},
		"a v1 request": {V1, url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "resource": {"r"}, "scope": {"openid"}, "client_assertion": {"x"}, "client_assertion_type": {AssertionTypeJWT}}, [2]string{},
			TokenRequest{Version: V1, GrantType: "client_credentials", ClientID: id, Resource: "r", Assertion: "x", AssertionType: AssertionTypeJWT}, 0},
		"HTTP Basic, form-encoded": {V2, url.Values{"grant_type": {"client_credentials"}}, [2]string{id, url.QueryEscape(secret)},
			TokenRequest{Version: V2, GrantType: "client_credentials", ClientID: id, Secret: secret}, 0},
		"HTTP Basic that is not form-encoded": {V2, url.Values{"grant_type": {"client_credentials"}}, [2]string{id, "50%"}, TokenRequest{}, 90013},
		"a parameter twice":                   {V2, url.Values{"grant_type": {"client_credentials"}, "scope": {"a", "a"}}, [2]string{}, TokenRequest{}, 9000411},
		"an unknown parameter twice":          {V2, url.Values{"grant_type": {"x"}, "claims": {"a", "a"}}, [2]string{}, TokenRequest{Version: V2, GrantType: "x"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var (
				got TokenRequest
				err error
			)
			serve(t, func(base string) *http.Request {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base, strings.NewReader(tt.form.Encode()))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				if tt.basic[0] != "" {
					req.SetBasicAuth(tt.basic[0], tt.basic[1])
				}
				return req
			}, func(_ http.ResponseWriter, r *http.Request) { got, err = ParseTokenRequest(r, tt.version) })
			var refused *Error
			if errors.As(err, &refused); (err != nil) != (tt.code != 0) || tt.code != 0 && refused.Code != tt.code {
				t.Fatalf("error %v, want code %d", err, tt.code)
			}
			if diff := cmp.Diff(tt.want, got); tt.code == 0 && diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnswersHaveTheFormOfTheirVersion(t *testing.T) {
	at := time.Unix(1731496400, 0)
	tok := TokenResponse{AccessToken: "secret", ExpiresIn: 3599 * time.Second, ExpiresOn: at.Add(3600 * time.Second), NotBefore: at.Add(-300 * time.Second), Resource: "r"}
	long := tok
	long.ExpiresIn, long.RefreshIn = 86399*time.Second, 43199*time.Second+500*time.Millisecond
	for _, tt := range []struct {
		version Version
		token   TokenResponse
		want    string
	}{
		{V1, tok, `{"token_type":"Bearer","expires_in":"3599","ext_expires_in":"3599","expires_on":"1731500000","not_before":"1731496100","resource":"r","access_token":"secret"}`},
		{V2, tok, `{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"secret"}`},
		{V2, long, `{"token_type":"Bearer","expires_in":86399,"ext_expires_in":86399,"refresh_in":43199,"access_token":"secret"}`},
	} {
		resp, body := serve(t, get(t), func(w http.ResponseWriter, _ *http.Request) {
			if err := WriteToken(w, tt.version, tt.token); err != nil {
				t.Error(err)
			}
		})
		if body != tt.want || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json; charset=utf-8" {
			t.Errorf("v%d: status %d, %s\nwant %s", tt.version, resp.StatusCode, body, tt.want)
		}
	}
}

func TestErrorsAreWrittenWithTheirIDs(t *testing.T) {
	x := Exchange{TraceID: "trace", CorrelationID: "correlation", Time: time.Date(2025, 2, 19, 4, 40, 30, 0, time.FixedZone("", 3600))}
	cause := errors.New("what only the log may know")
	resp, body := serve(t, get(t), func(w http.ResponseWriter, _ *http.Request) {
		x.WriteHeaders(w.Header())
		if err := WriteError(w, x, SubjectMismatch("<a&b>").Because(cause)); err != nil {
			t.Error(err)
		}
	})
	var got ErrorBody
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := ErrorBody{
		Error: "invalid_client",
		Description: "AADSTS700213: No matching federated identity record found for presented assertion subject '<a&b>'. Check your federated identity credential Subject, Audience and Issuer" +
			" against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation Trace ID: trace Correlation ID: correlation Timestamp: 2025-02-19 03:40:30Z",
		Codes: []int{700213}, Timestamp: "2025-02-19 03:40:30Z", TraceID: "trace", CorrelationID: "correlation",
		URI: "https://login.microsoftonline.com/error?code=700213",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for k, want := range map[string]string{
		"X-Ms-Request-Id": "trace", "Client-Request-Id": "correlation", "X-Ms-Clitelem": "1,700213,0,,", "Cache-Control": "no-store, no-cache", "Pragma": "no-cache",
		"Expires": "-1", "X-Content-Type-Options": "nosniff", "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
	} {
		if got := resp.Header.Get(k); got != want {
			t.Errorf("%s = %q, want %q", k, got, want)
		}
	}
	if resp.StatusCode != 401 || strings.Contains(body, "only the log") {
		t.Errorf("status %d, %s", resp.StatusCode, body)
	}
	if e := SubjectMismatch("x"); errors.Unwrap(e) != nil || !errors.Is(e.Because(cause), cause) {
		t.Error("Because changes its receiver or loses the cause")
	}
	if e := IssuerMismatch(strings.Repeat("é", 5000)); len(e.Text) > 2000 {
		t.Errorf("a text of %d bytes", len(e.Text))
	}
}

func TestNothingPrintsItsSecret(t *testing.T) {
	const secret = "hush-hush"
	req := TokenRequest{GrantType: "client_credentials", ClientID: "id", Secret: secret, Assertion: secret}
	tok := TokenResponse{AccessToken: secret, Resource: "r"}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "req", req, "tok", tok)
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s", req, req, req, req), fmt.Sprintf("%v %+v %#v %s", tok, tok, tok, tok), fmt.Sprint(&req, &tok), log.String()} {
		if strings.Contains(s, secret) {
			t.Errorf("printed: %s", s)
		}
	}
}
