package proxy

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/entra"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	tenant     = "contoso.onmicrosoft.com"
	mine       = "11111111-aaaa-bbbb-cccc-000000000001" // AZURE_CLIENT_ID
	other      = "22222222-aaaa-bbbb-cccc-000000000002"
	mineOID    = "99999999-0000-0000-0000-000000000001"
	otherOID   = "99999999-0000-0000-0000-000000000002"
	mineARM    = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/mine"
	vault      = "https://vault.azure.net"
	management = "https://management.azure.com/"
)

// jwt is a token that says what a test wants of itself.
func jwt(claims map[string]any) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	return part(map[string]string{"alg": "RS256"}) + "." + part(claims) + ".c2VjcmV0"
}

// A fakeEntra answers as refuse says, or with a token of the client id.
type fakeEntra struct {
	mu       sync.Mutex
	requests []entra.TokenRequest
	refuse   func(w http.ResponseWriter, q entra.TokenRequest) bool // true: it has answered
	opaque   bool                                                   // tokens cannot be read
	lifetime time.Duration
}

func (f *fakeEntra) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, err := entra.ParseTokenRequest(r, entra.V2)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.requests = append(f.requests, q)
	n, refuse, opaque := len(f.requests), f.refuse, f.opaque
	f.mu.Unlock()
	if refuse != nil && refuse(w, q) {
		return
	}
	claims := map[string]any{"appid": q.ClientID, "n": n, "scp": q.Scope}
	switch q.ClientID {
	case mine:
		claims["oid"], claims["xms_mirid"] = mineOID, mineARM
	case other:
		claims["oid"] = otherOID
	}
	t := jwt(claims)
	if opaque {
		t = "opaque"
	}
	lifetime := f.lifetime
	if lifetime == 0 {
		lifetime = time.Hour
	}
	_ = entra.WriteToken(w, entra.V2, entra.TokenResponse{AccessToken: t, ExpiresIn: lifetime})
}

func (f *fakeEntra) set(change func(*fakeEntra)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeEntra) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

// RoundTrip makes it a transport, for tests in a bubble of time.
func (f *fakeEntra) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w.Result(), nil
}

// refusal answers with an error of Entra.
func refusal(status, code int, name, text string, headers ...string) func(http.ResponseWriter, entra.TokenRequest) bool {
	return func(w http.ResponseWriter, _ entra.TokenRequest) bool {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":%q,"error_description":"AADSTS%d: %s","error_codes":[%d]}`, name, code, text, code)
		return true
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A fixture is a proxy between a fake Entra and a fake metadata service.
type fixture struct {
	entra    *fakeEntra
	node     *httptest.Server // the metadata service: it says what came
	tokens   *Tokens
	server   *Server
	url      string
	log      *buffer
	file     string
	received chan *http.Request
}

const federated = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwb2QifQ.ZmVkZXJhdGVk"

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{entra: &fakeEntra{}, log: &buffer{}, file: filepath.Join(t.TempDir(), "token"), received: make(chan *http.Request, 64)}
	f.write(t, federated)
	login := httptest.NewServer(f.entra)
	t.Cleanup(login.Close)
	f.node = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.received <- r
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.RequestURI())
	}))
	t.Cleanup(f.node.Close)
	upstream, err := url.Parse(f.node.URL)
	if err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewJSONHandler(f.log, nil))
	f.tokens = &Tokens{Tenant: tenant, ClientID: mine, File: entra.AssertionFile(f.file), Entra: &entra.Client{Authority: login.URL, AllowHTTP: true}, Logger: logger}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	t.Cleanup(func() { f.tokens.Entra.CloseIdleConnections() })
	f.server = &Server{Tokens: f.tokens, TokenFile: f.tokens.File, Upstream: upstream, Transport: transport, Logger: logger}
	s := httptest.NewServer(f.server)
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

func (f *fixture) write(t testing.TB, assertion string) {
	t.Helper()
	if err := os.WriteFile(f.file, []byte(assertion), 0o600); err != nil {
		t.Fatal(err)
	}
}

// An answer is what came back.
type answer struct {
	status      int
	header      http.Header
	body        string
	AccessToken string `json:"access_token"`
	ClientID    string `json:"client_id"`
	Resource    string `json:"resource"`
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

// claim is one of the token's claims.
func (a answer) claim(t testing.TB, name string) string {
	t.Helper()
	parts := strings.Split(a.AccessToken, ".")
	if len(parts) != 3 {
		t.Fatalf("%d %s has no token", a.status, a.body)
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	claims := map[string]any{}
	if err := json.Unmarshal(b, &claims); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(claims[name])
}

func (f *fixture) do(t testing.TB, r *http.Request) answer {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		t.Fatal(err)
	}
	a := answer{status: res.StatusCode, header: res.Header, body: b.String()}
	_ = json.Unmarshal(b.Bytes(), &a) // not all answers are JSON
	return a
}

// get asks with the Metadata header.
func (f *fixture) get(t testing.TB, path string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Metadata", "true")
	return f.do(t, r)
}

// token asks for a token with this query behind the resource.
func (f *fixture) token(t testing.TB, query string) answer {
	t.Helper()
	return f.get(t, "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="+url.QueryEscape(vault)+query)
}
