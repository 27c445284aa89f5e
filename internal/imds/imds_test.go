package imds_test

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// TestContract replays testdata/contract.json against a real server.
func TestContract(t *testing.T) {
	data, err := os.ReadFile("testdata/contract.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name, Method, Query, Error, Description string
		Headers                                 []string
		Status                                  int
		Want                                    imds.TokenRequest
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q, err := imds.ParseTokenRequest(r)
		var e *imds.Error
		switch {
		case err == nil:
			_ = json.NewEncoder(w).Encode(q)
		case errors.As(err, &e):
			imds.WriteError(w, e)
		default:
			t.Errorf("%T is not an *imds.Error", err)
		}
	}))
	defer srv.Close()
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			req, err := http.NewRequest(c.Method, srv.URL+imds.TokenPath+"?"+c.Query, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range c.Headers {
				name, value, _ := strings.Cut(h, ":")
				req.Header.Add(name, strings.TrimSpace(value))
			}
			res, err := srv.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if c.Status == 0 {
				var got imds.TokenRequest
				if err := json.NewDecoder(res.Body).Decode(&got); err != nil || res.StatusCode != http.StatusOK {
					t.Fatalf("status %d, %v", res.StatusCode, err)
				}
				if diff := cmp.Diff(c.Want, got); diff != "" {
					t.Errorf("(-want +got)\n%s", diff)
				}
				return
			}
			if res.StatusCode != c.Status {
				t.Errorf("status %d, want %d", res.StatusCode, c.Status)
			}
			if got := res.Header.Get("Content-Type"); got != "application/json; charset=utf-8" {
				t.Errorf("content type %q", got)
			}
			if got := res.Header.Get("Allow"); (c.Status == http.StatusMethodNotAllowed) != (got == "GET") {
				t.Errorf("Allow %q with status %d", got, res.StatusCode)
			}
			if c.Method == http.MethodHead {
				return // no body
			}
			var body map[string]string
			if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"error": c.Error, "error_description": c.Description}, body); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestARequestWithoutTheHeaderIsServedOnlyWhereTheOperatorSaysSo(t *testing.T) {
	req := httptest.NewRequest(http.MethodGet, imds.TokenPath+"?resource=r", nil)
	if _, err := (imds.Rules{}).Parse(req); err == nil {
		t.Error("the zero rules let it pass")
	}
	if q, err := (imds.Rules{HeaderOptional: true}).Parse(req); err != nil || q.Resource != "r" {
		t.Errorf("HeaderOptional: %+v, %v", q, err)
	}
	req.Header.Set("Metadata", "false")
	if _, err := (imds.Rules{HeaderOptional: true}).Parse(req); err == nil {
		t.Error("HeaderOptional lets a header with another value pass")
	}
}

func TestOverlongInputIsRefused(t *testing.T) {
	long := strings.Repeat("x", 3000)
	for _, q := range []string{"resource=" + long, "resource=r&client_id=" + long, "resource=r&" + long + "=1&" + long + "=2"} {
		req := httptest.NewRequest(http.MethodGet, imds.TokenPath+"?"+q, nil)
		req.Header.Set("Metadata", "true")
		_, err := imds.ParseTokenRequest(req)
		if err == nil {
			t.Errorf("%.30s… passed", q)
			continue
		}
		if len(err.Error()) > 200 {
			t.Errorf("the error repeats the input: %.300s", err)
		}
	}
}

func TestWriteTokenAnswersStringsInTheOrderOfTheRealService(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	tok := token.Token{AccessToken: "a.b.c", ClientID: "c1", Resource: "https://x/?a=1&b=2", ExpiresOn: now.Add(86400*time.Second + 500*time.Millisecond), NotBefore: now.Add(-300 * time.Second)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		imds.WriteToken(w, tok, now)
	}))
	defer srv.Close()
	get := func() (string, http.Header) {
		res, err := srv.Client().Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b), res.Header
	}
	got, h := get()
	want := `{"access_token":"a.b.c","client_id":"c1","expires_in":"86400","expires_on":"1700086400","ext_expires_in":"86400","not_before":"1699999700","resource":"https://x/?a=1&b=2","token_type":"Bearer"}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if h.Get("Content-Type") != "application/json; charset=utf-8" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", h)
	}

	tok = token.Token{AccessToken: "a", ExpiresOn: now.Add(-time.Hour)}
	if got, _ := get(); !strings.Contains(got, `"expires_in":"0"`) || !strings.Contains(got, `"not_before":"1700000000"`) {
		t.Errorf("an expired token without a beginning: %s", got)
	}
}

func TestWriteErrorKeepsTheCauseToItself(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		imds.WriteError(w, &imds.Error{RetryAfter: 1200 * time.Millisecond, Description: "d", Err: errors.New("inner secret")})
	}))
	defer srv.Close()
	res, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	if got, want := string(b), `{"error":"unknown","error_description":"d"}`+"\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	if res.StatusCode != http.StatusInternalServerError || res.Header.Get("Retry-After") != "2" {
		t.Errorf("status %d, Retry-After %q", res.StatusCode, res.Header.Get("Retry-After"))
	}
}
