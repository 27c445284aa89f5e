package standin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Tenant is the one tenant of the stand-ins.
const Tenant = "11111111-1111-4111-8111-111111111111"

// ClientID is the client id of identity or application number n. ObjectID is
// that of its principal.
func ClientID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// ObjectID is the object id of the principal of identity or application n.
func ObjectID(n int) string { return fmt.Sprintf("00000000-0000-4000-9000-%012d", n) }

// IdentityName is the name of managed identity n: its resource id ends in it.
func IdentityName(n int) string { return fmt.Sprintf("bench-%05d", n) }

// number is the inverse of all of these; 0 if it is none.
func number(id string) int {
	if id == "" {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimLeft(id[strings.LastIndexAny(id, "-")+1:], "0"))
	if err != nil {
		return 0
	}
	return n
}

// accessToken has the size and the shape of Entra's, and no valid signature.
// Mark is a text in it that names the identity.
func accessToken(n int, resource string, now time.Time) string {
	claims := map[string]any{
		"aud": resource, "iss": "https://sts.windows.net/" + Tenant + "/", "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(24 * time.Hour).Unix(),
		"aio": strings.Repeat("k2RgYPh", 6), "appid": ClientID(n), "appidacr": "2", "idp": "https://sts.windows.net/" + Tenant + "/",
		"oid": ObjectID(n), "sub": ObjectID(n), "tid": Tenant, "uti": "mP2nVu0BNUq6nJ8vUwYlAA", "ver": "1.0",
		"xms_mirid": "/subscriptions/" + Subscription + "/resourcegroups/" + Group + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + IdentityName(n),
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err) // strings and numbers
	}
	enc := base64.RawURLEncoding
	head := enc.EncodeToString([]byte(`{"typ":"JWT","alg":"RS256","x5t":"bench","kid":"bench"}`))
	return head + "." + enc.EncodeToString(payload) + "." + enc.EncodeToString(Mark(n)) + strings.Repeat("x", 310)
}

// Mark is what every access token of identity n holds and no other, outside of
// its claims: it can be searched for in the token's text.
func Mark(n int) []byte {
	return fmt.Appendf(nil, "%030d", n)
}

// MarkText is Mark as it stands in a token.
func MarkText(n int) []byte { return []byte(base64.RawURLEncoding.EncodeToString(Mark(n))) }

// metadata answers the token endpoint of an instance metadata service. HangPath
// makes it accept requests and never answer them.
func (c Config) metadata() http.Handler {
	mux := http.NewServeMux()
	var hang atomic.Bool
	mux.HandleFunc("POST "+HangPath, func(_ http.ResponseWriter, _ *http.Request) { hang.Store(true) })
	mux.HandleFunc("GET /metadata/identity/oauth2/token", func(w http.ResponseWriter, r *http.Request) {
		if hang.Load() {
			<-r.Context().Done()
			return
		}
		if !wait(r.Context(), c.Latency) {
			return
		}
		q := r.URL.Query()
		n := 0
		for _, name := range []string{"client_id", "object_id", "msi_res_id", "mi_res_id"} {
			if n == 0 {
				n = number(q.Get(name))
			}
		}
		if n == 0 {
			writeJSON(w, http.StatusBadRequest, map[string]string{"error": "invalid_request", "error_description": "Identity not found"})
			return
		}
		now := time.Now()
		writeJSON(w, http.StatusOK, map[string]string{
			"access_token": accessToken(n, q.Get("resource"), now), "client_id": ClientID(n), "token_type": "Bearer", "resource": q.Get("resource"),
			"expires_in": "86399", "ext_expires_in": "86399", "expires_on": strconv.FormatInt(now.Add(24*time.Hour).Unix(), 10), "not_before": strconv.FormatInt(now.Unix(), 10),
		})
	})
	return mux
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // whoever has gone away is not waited for
}

// A Recorded answer is given again, byte for byte but for its date.
type Recorded struct {
	Header http.Header `json:"header"`
	Body   []byte      `json:"body"`
}

// Save writes r to a file, for the stand-in "bare".
func (r Recorded) Save(file string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

// ReadRecorded reads what Save wrote.
func ReadRecorded(file string) (*Recorded, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the recorded answer: %w", err)
	}
	r := &Recorded{}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(r); err != nil {
		return nil, fmt.Errorf("reading the recorded answer: %w", err)
	}
	r.Header.Del("Date") // net/http writes the date of the day
	r.Header.Set("Content-Length", strconv.Itoa(len(r.Body)))
	return r, nil
}

// ServeHTTP implements http.Handler.
func (r *Recorded) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	for name, values := range r.Header {
		h[name] = values
	}
	_, _ = w.Write(r.Body)
}
