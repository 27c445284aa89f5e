package issuer

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// An apiServer answers what Cluster asks, with its own keys. The real ones are in
// the tests of package rotation: there is only one of them.
type apiServer struct {
	*httptest.Server
	d        Documents
	slices   discoveryv1.EndpointSliceList
	secrets  corev1.SecretList
	forbid   bool // to list endpoints
	broken   bool
	audience []string // of the tokens that were asked for
}

func newAPIServer(t *testing.T, issuer string, keys ...Key) *apiServer {
	t.Helper()
	s := &apiServer{d: Documents{issuer, keys}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch path := strings.TrimPrefix(r.URL.Path, "/"); {
	case s.broken:
		http.Error(w, "broken", http.StatusServiceUnavailable)
	case path == ConfigurationPath:
		_, _ = w.Write(must(s.d.ConfigurationJSON()))
	case path == KeysPath:
		_, _ = w.Write(must(s.d.KeysJSON()))
	case strings.HasSuffix(path, "endpointslices") && s.forbid:
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: metav1.StatusReasonForbidden, Code: 403})
	case strings.HasSuffix(path, "endpointslices"):
		s.slices.TypeMeta = metav1.TypeMeta{Kind: "EndpointSliceList", APIVersion: "discovery.k8s.io/v1"}
		_ = json.NewEncoder(w).Encode(s.slices)
	case strings.HasSuffix(path, "secrets"):
		s.secrets.TypeMeta = metav1.TypeMeta{Kind: "SecretList", APIVersion: "v1"}
		_ = json.NewEncoder(w).Encode(s.secrets)
	case strings.HasSuffix(path, "/token"):
		var ask authenticationv1.TokenRequest
		_ = json.NewDecoder(r.Body).Decode(&ask)
		s.audience = ask.Spec.Audiences
		ask.Status.Token = token(s.d.Keys[0].ID)
		ask.TypeMeta = metav1.TypeMeta{Kind: "TokenRequest", APIVersion: "authentication.k8s.io/v1"}
		_ = json.NewEncoder(w).Encode(ask)
	default:
		http.NotFound(w, r)
	}
}

func token(kid string) string {
	e := base64.RawURLEncoding.EncodeToString
	return e([]byte(`{"alg":"RS256","kid":"`+kid+`"}`)) + "." + e([]byte(`{"iat":1000,"exp":4600}`)) + "." + e([]byte("signature"))
}

func TestEveryAPIServerIsAskedByItself(t *testing.T) {
	a, b := newKey(), newKey()
	const us = "https://a.example"
	one, two := newAPIServer(t, us, a), newAPIServer(t, us, b, a)
	c := &Cluster{Config: &rest.Config{Host: one.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, Servers: []string{one.URL, two.URL}}
	d, complete, err := c.Documents(t.Context())
	if err != nil || !complete || !d.Equal(Documents{us, []Key{a, b}}) {
		t.Errorf("%v %t, %v", KeyIDs(d.Keys), complete, err)
	}
	servers, err := c.Observe(t.Context())
	if err != nil || servers[0].Signer != a.ID || servers[1].Signer != b.ID || servers[0].Accepts(b.ID) || servers[1].Lifetime != time.Hour {
		t.Errorf("%+v, %v", servers, err)
	}
	if len(one.audience) != 1 || one.audience[0] == us || strings.HasPrefix(one.audience[0], "api://") {
		t.Errorf("a token was asked for that somebody accepts: %v", one.audience)
	}
	two.broken = true
	if d, complete, err := c.Documents(t.Context()); err != nil || complete || len(d.Keys) != 1 {
		t.Errorf("with one away: %v %t, %v", KeyIDs(d.Keys), complete, err)
	}
	if servers, err := c.Observe(t.Context()); err != nil || servers[0].Err != nil || servers[1].Err == nil {
		t.Errorf("with one away: %+v, %v", servers, err)
	}
	two.broken, two.d.Issuer = false, us+"/"
	if _, _, err := c.Documents(t.Context()); err == nil || !strings.Contains(err.Error(), "disagree") {
		t.Errorf("two issuers: %v", err)
	}
	one.broken, two.broken = true, true
	if _, _, err := c.Documents(t.Context()); err == nil {
		t.Error("documents of nobody")
	}
}

func TestWhereAPIServersCannotBeListedOneIsNotTakenForAll(t *testing.T) {
	a := newKey()
	s := newAPIServer(t, "https://a.example", a)
	c := &Cluster{Config: &rest.Config{Host: s.URL}}
	if _, complete, err := c.Documents(t.Context()); err != nil || !complete {
		t.Errorf("alone: %t, %v", complete, err)
	}
	s.forbid = true
	if d, complete, err := c.Documents(t.Context()); err != nil || complete || len(d.Keys) != 1 {
		t.Errorf("forbidden: %+v %t, %v", d, complete, err)
	}
	if _, err := c.Observe(t.Context()); err == nil {
		t.Error("a rotation would begin without knowing all API servers")
	}
}

func TestEndpointsOfTheAPIServers(t *testing.T) {
	port, other, name, metrics := int32(6443), int32(9090), "https", "metrics"
	got := endpoints([]discoveryv1.EndpointSlice{
		{Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}, {Name: &metrics, Port: &other}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}}, {Addresses: []string{"10.0.0.1"}}}},
		{Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"fd00::1"}}, {Addresses: []string{"10.0.0.1"}}}},
	})
	if want := "https://10.0.0.1:6443 https://10.0.0.2:6443 https://[fd00::1]:6443"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func TestSecretsWithTokensOfAKeyAreFound(t *testing.T) {
	s := newAPIServer(t, "https://a.example", newKey())
	secret := func(name, kid string) corev1.Secret {
		return corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: map[string][]byte{"token": []byte(token(kid))}}
	}
	empty := secret("empty", "old")
	empty.Data = nil
	s.secrets.Items = []corev1.Secret{secret("forever", "old"), secret("new", "new"), empty}
	found, err := (&Cluster{Config: &rest.Config{Host: s.URL}}).LegacyTokens(t.Context(), []string{"old"})
	if err != nil || len(found) != 1 || found[0] != "ns/forever" {
		t.Errorf("%v, %v", found, err)
	}
}
