package issuer_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/federation/issuer"
)

func TestCheck(t *testing.T) {
	for text, want := range map[string]string{
		"https://eastus.oic.prod-aks.azure.com/t/i/":       "",
		"https://oidc.example":                             "",
		"http://oidc.example":                              "not a URL",
		"oidc.example":                                     "not a URL",
		"https://user@oidc.example/":                       "not a URL",
		"https://oidc.example/?a=b":                        "not a URL",
		"https://kubernetes.default.svc":                   "only the cluster knows",
		"https://kubernetes.default.svc.cluster.local":     "only the cluster knows",
		"https://oidc.example/" + strings.Repeat("x", 600): "longer than",
		"https://oidc.example/a b":                         "white space",
	} {
		err := issuer.Check(text)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

func TestTheIssuerIsWhatTheAPIServerSaysUntilItSaysAnother(t *testing.T) {
	var now atomic.Value
	now.Store("https://one.example/")
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := now.Load().(string)
		if r.URL.Path != "/.well-known/openid-configuration" || text == "" {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, `{"issuer":%q}`, text)
	}))
	defer api.Close()
	d, err := discovery.NewDiscoveryClientForConfig(&rest.Config{Host: api.URL, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	s := &issuer.Source{API: d.RESTClient()}
	changed := func() bool {
		select {
		case <-s.Changed():
			return true
		default:
			return false
		}
	}
	if _, err := s.Issuer(); err == nil {
		t.Error("an issuer without a look")
	}
	look := func(says, want string, news bool) {
		t.Helper()
		now.Store(says)
		s.Look(t.Context())
		got, err := s.Issuer()
		if got != want || (err == nil) != (want != "") || changed() != news {
			t.Errorf("says %q: %q %v, want %q", says, got, err, want)
		}
	}
	look("https://one.example/", "https://one.example/", true)
	look("https://one.example/", "https://one.example/", false)
	look("https://one.example", "https://one.example", true) // the slash counts
	look("", "https://one.example", false)                   // it does not answer
	look("https://kubernetes.default.svc", "", true)
	look("https://two.example", "https://two.example", true)
}
