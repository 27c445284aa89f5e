package source_test

import (
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/nmi/source"
)

// A fixture is a namespace with one identity, its Secret and its directory.
type fixture struct {
	*directory
	source    *source.Source
	client    kubernetes.Interface
	namespace string
	id        *v1.AzureIdentity

	mu      sync.Mutex
	reports []error
}

func newFixture(t *testing.T, passwords ...string) *fixture {
	t.Helper()
	client, err := kubernetes.NewForConfig(cluster.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{directory: newDirectory(t, passwords...), client: client, namespace: cluster.Namespace(t)}
	f.id = identity(f.namespace, "app", v1.ServicePrincipal)
	f.source = &source.Source{
		Machine: &imds.Client{}, Secrets: client.CoreV1().RESTClient(), Entra: f.directory.client(t), Patience: 5 * time.Second, Logger: slog.New(slog.DiscardHandler),
		Report: func(_ *v1.AzureIdentity, err error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.reports = append(f.reports, err)
		},
	}
	return f
}

func (f *fixture) reported() []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]error(nil), f.reports...)
}

func (f *fixture) put(t *testing.T, data map[string]string) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "app"}, StringData: data}
	secrets := f.client.CoreV1().Secrets(f.namespace)
	_, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{})
	if err != nil {
		_, err = secrets.Create(t.Context(), s, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) token(t *testing.T, resource string) string {
	t.Helper()
	tokens, err := f.source.Tokens(t.Context(), f.id, resource)
	if err != nil {
		t.Fatalf("Tokens: %v", err)
	}
	return tokens[0].AccessToken
}

func (f *fixture) refusal(t *testing.T, resource string) *imds.Error {
	t.Helper()
	tokens, err := f.source.Tokens(t.Context(), f.id, resource)
	var e *imds.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, %v, want an *imds.Error", tokens, err)
	}
	return e
}

func TestAChangedSecretIsInForceWithinASecond(t *testing.T) {
	f := newFixture(t, "old", "new")
	f.put(t, map[string]string{"clientSecret": "old"})
	run(t, f.source)
	if got := f.token(t, vault); !strings.Contains(got, "by old") {
		t.Fatalf("got %q", got)
	}
	f.put(t, map[string]string{"clientSecret": "new"})
	changed := time.Now()
	labtest.Eventually(t, t.Context(), func() error {
		if got := f.token(t, vault); !strings.Contains(got, "by new") {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	if took := time.Since(changed); took > time.Second {
		t.Errorf("the new password was used only after %s", took)
	}
	if r := f.reported(); len(r) != 1 || r[0] != nil {
		t.Errorf("reported %v, want that the new one works", r)
	}
	n := f.requests()
	for range 50 {
		f.token(t, vault)
	}
	if f.requests() != n {
		t.Errorf("%d more requests for a token that is held", f.requests()-n)
	}
}

func TestABadNewSecretIsReportedAndTheOldOneServesOn(t *testing.T) {
	f := newFixture(t, "old")
	f.put(t, map[string]string{"clientSecret": "old"})
	run(t, f.source)
	f.token(t, vault)
	f.put(t, map[string]string{"clientSecret": "wrong"})
	labtest.Eventually(t, t.Context(), func() error {
		f.token(t, vault) // never fails
		if len(f.reported()) == 0 {
			return errors.New("nothing was reported")
		}
		return nil
	})
	if r := f.reported()[0]; r == nil || !strings.Contains(r.Error(), "AADSTS7000215") || strings.Contains(r.Error(), "wrong") {
		t.Errorf("reported %v", r)
	}
	if got := f.token(t, "https://other.example"); !strings.Contains(got, "by old") {
		t.Errorf("another resource got %q", got)
	}
	// The application learns the new one later: it is tried again.
	f.set(func() { f.passwords["wrong"] = true; delete(f.passwords, "old") })
	labtest.Eventually(t, t.Context(), func() error {
		if got := f.token(t, vault); !strings.Contains(got, "by wrong") {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
}

func TestASecretThatCannotBeReadAnyMoreDoesNotTakeTheWorkloadDown(t *testing.T) {
	f := newFixture(t, "old")
	f.put(t, map[string]string{"clientSecret": "old"})
	run(t, f.source)
	f.token(t, vault)
	f.put(t, map[string]string{"a": "x", "b": "y"})
	labtest.Eventually(t, t.Context(), func() error {
		f.token(t, vault)
		if len(f.reported()) == 0 {
			return errors.New("nothing was reported")
		}
		return nil
	})
	if r := f.reported()[0]; r == nil || !strings.Contains(r.Error(), "the keys a, b") {
		t.Errorf("reported %v", r)
	}
}

func TestADeletedSecretTakesTheIdentityAwayAndANewOneBringsItBack(t *testing.T) {
	f := newFixture(t, "old")
	f.put(t, map[string]string{"clientSecret": "old"})
	run(t, f.source)
	f.token(t, vault)
	if err := f.client.CoreV1().Secrets(f.namespace).Delete(t.Context(), "app", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var e *imds.Error
	labtest.Eventually(t, t.Context(), func() error {
		if _, err := f.source.Tokens(t.Context(), f.id, vault); !errors.As(err, &e) {
			return errors.New("still served")
		}
		return nil
	})
	if e.Status != 503 || e.RetryAfter == 0 || !strings.Contains(e.Description, "does not exist") {
		t.Errorf("refused with %v", e)
	}
	f.put(t, map[string]string{"password": "old"})
	labtest.Eventually(t, t.Context(), func() error {
		_, err := f.source.Tokens(t.Context(), f.id, vault)
		return err
	})
}

func TestRefusalsOfEntraReachTheCallerInItsWords(t *testing.T) {
	f := newFixture(t)
	f.put(t, map[string]string{"clientSecret": "never-right"})
	run(t, f.source)
	for range 5 {
		e := f.refusal(t, vault)
		if e.Status != 403 || e.Code != "invalid_client" || !strings.HasPrefix(e.Description, "AADSTS7000215: Invalid client secret") || strings.Contains(e.Error(), "never-right") {
			t.Fatalf("got %v", e)
		}
	}
	if n := f.requests(); n != 1 {
		t.Errorf("a refusal was asked for %d times, want once", n)
	}
	f.set(func() {
		f.answer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Retry-After", "7")
			jsonBody(w, 503, map[string]any{"error": "temporarily_unavailable", "error_description": "AADSTS90033: A transient error has occurred."})
			return true
		}
	})
	if e := f.refusal(t, "https://other.example"); e.Status != 503 || e.RetryAfter != 7*time.Second || !strings.Contains(e.Description, "AADSTS90033") {
		t.Errorf("got %v", e)
	}
}

func TestAuxiliaryTenantsComeAfterThePrimaryAndFailTogether(t *testing.T) {
	f := newFixture(t, "old")
	f.put(t, map[string]string{"clientSecret": "old"})
	run(t, f.source)
	f.id.Spec.AuxiliaryTenantIDs = []string{"one.example", "two.example", "three.example"}
	tokens, err := f.source.Tokens(t.Context(), f.id, vault)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{tenant, "one.example", "two.example", "three.example"} {
		if !strings.Contains(tokens[i].AccessToken, "in "+want+" ") {
			t.Errorf("token %d is %q, want one of %s", i, tokens[i].AccessToken, want)
		}
	}
	f.set(func() {
		f.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/two.example/") {
				jsonBody(w, 400, map[string]any{"error": "unauthorized_client", "error_description": "AADSTS700016: no such application", "error_codes": []int{700016}})
				return true
			}
			return false
		}
	})
	if e := f.refusal(t, "https://other.example"); e.Status != 403 || e.Description != "tenant two.example: AADSTS700016: no such application" {
		t.Errorf("got %v", e)
	}
	f.id.Spec.AuxiliaryTenantIDs = []string{"1.example", "2.example", "3.example", "4.example"}
	if e := f.refusal(t, vault); !strings.Contains(e.Description, "3 at most") {
		t.Errorf("got %v", e)
	}
}

func TestACertificateOfCertManagerSignsAndOneThatExpiredIsWarnedOf(t *testing.T) {
	f := newFixture(t)
	f.id.Spec.Type = v1.ServicePrincipalCertificate
	put := func(until time.Time) *rsa.PrivateKey {
		key, cert := certificate(t, until)
		f.put(t, map[string]string{
			"tls.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})),
			"tls.key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		})
		return key
	}
	key := put(time.Now().Add(time.Hour))
	run(t, f.source)
	f.token(t, vault)
	signed, err := jwt.ParseSigned(f.asked[0], []jose.SignatureAlgorithm{jose.PS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := signed.Claims(key.Public(), &claims); err != nil || claims.Subject != app || claims.Audience[0] != f.URL+"/"+tenant+"/oauth2/v2.0/token" {
		t.Errorf("claims %+v: %v", claims, err)
	}

	put(time.Now().Add(-time.Minute))
	labtest.Eventually(t, t.Context(), func() error {
		f.token(t, vault)
		if r := f.reported(); len(r) == 0 || r[0] == nil || !strings.Contains(r[0].Error(), "expired at") {
			return fmt.Errorf("reported %v", r)
		}
		return nil
	})
}

func TestAPodThatComesFindsItsTokenFetched(t *testing.T) {
	f := newFixture(t, "right")
	f.put(t, map[string]string{"clientSecret": "right"})
	f.source.Resources = []string{vault}
	run(t, f.source)
	f.source.Prefetch(t.Context(), f.id)
	labtest.Eventually(t, t.Context(), func() error {
		if f.requests() != 1 {
			return errors.New("not fetched")
		}
		return nil
	})
	f.token(t, vault)
	if n := f.requests(); n != 1 {
		t.Errorf("%d requests, want the one of the prefetch", n)
	}
}
