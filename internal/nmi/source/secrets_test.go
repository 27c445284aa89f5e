package source_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/nmi/source"
)

// as returns a client of a user who may do only that with Secrets.
func (f *fixture) as(t *testing.T, user string, verbs ...string) kubernetes.Interface {
	t.Helper()
	rbac := f.client.RbacV1()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: user}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{"app"}, Verbs: verbs}}}
	if _, err := rbac.Roles(f.namespace).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	grant := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: rbacv1.RoleRef{APIGroup: "rbac.authorization.k8s.io", Kind: "Role", Name: user},
		Subjects: []rbacv1.Subject{{Kind: "User", APIGroup: "rbac.authorization.k8s.io", Name: user}},
	}
	if _, err := rbac.RoleBindings(f.namespace).Create(t.Context(), grant, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	config := cluster.Config(t)
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestAnAgentThatMayOnlyGetReadsAtMostOnceASecond(t *testing.T) {
	f := newFixture(t, "old", "new")
	f.put(t, map[string]string{"clientSecret": "old"})
	f.source.Secrets = f.as(t, "getter", "get").CoreV1().RESTClient()
	var mu sync.Mutex
	reads := 0
	f.source.Observe = func(o source.Operation) {
		mu.Lock()
		defer mu.Unlock()
		if o.Type == source.OperationSecret && o.Err == nil {
			reads++
		}
	}
	run(t, f.source)
	labtest.Eventually(t, t.Context(), func() error { // RBAC takes a moment
		_, err := f.source.Tokens(t.Context(), f.id, vault)
		return err
	})
	start := time.Now()
	f.put(t, map[string]string{"clientSecret": "new"})
	for time.Since(start) < 2500*time.Millisecond {
		if got := f.token(t, vault); time.Since(start) > 1500*time.Millisecond && !strings.Contains(got, "by new") {
			t.Fatalf("after %s: %s", time.Since(start), got)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if reads > 8 {
		t.Errorf("%d reads in some three seconds", reads)
	}
}

func TestAnAgentThatMayReadNoSecretSaysSo(t *testing.T) {
	f := newFixture(t, "old")
	f.put(t, map[string]string{"clientSecret": "old"})
	f.source.Secrets = f.as(t, "nobody", "patch").CoreV1().RESTClient()
	run(t, f.source)
	e := f.refusal(t, vault)
	if e.Status != 503 || !strings.Contains(e.Description, "Secret "+f.namespace+"/app cannot be read") {
		t.Errorf("got %v", e)
	}
}

func TestOneNamespaceLeavesTheOthersTheirSecrets(t *testing.T) {
	f := newFixture(t, "right")
	f.put(t, map[string]string{"clientSecret": "right"})
	run(t, f.source)
	greedy := f.id.DeepCopy()
	greedy.Namespace = cluster.Namespace(t)
	greedy.Spec.ClientPassword.Namespace = greedy.Namespace
	for i := range 300 {
		greedy.Spec.ClientPassword.Name = fmt.Sprint("secret-", i)
		f.source.Prefetch(t.Context(), greedy)
	}
	_, err := f.source.Tokens(t.Context(), greedy, vault)
	if err == nil || !strings.Contains(err.Error(), "256 Secrets of namespace "+greedy.Namespace+" are in use") {
		t.Errorf("the 300th of one namespace: %v", err)
	}
	if got := f.token(t, vault); !strings.Contains(got, "by right") {
		t.Errorf("another namespace got %s", got)
	}
}

func TestAnAgentMayBeAllowedToReadOneSecretByName(t *testing.T) {
	f := newFixture(t, "old", "new")
	f.put(t, map[string]string{"clientSecret": "old"})
	f.source.Secrets = f.as(t, "watcher", "list", "watch").CoreV1().RESTClient()
	run(t, f.source)
	labtest.Eventually(t, t.Context(), func() error {
		_, err := f.source.Tokens(t.Context(), f.id, vault)
		return err
	})
	f.put(t, map[string]string{"clientSecret": "new"})
	labtest.Eventually(t, t.Context(), func() error {
		if got := f.token(t, vault); !strings.Contains(got, "by new") {
			return fmt.Errorf("got %s", got)
		}
		return nil
	})
}

func TestAnIdentityNeverGetsTheTokenOfAnother(t *testing.T) {
	f := newFixture(t, "right")
	f.put(t, map[string]string{"clientSecret": "right"})
	run(t, f.source)
	f.token(t, vault)

	// Another namespace claims the same application and has no credential of it.
	thief := newFixture(t)
	thief.put(t, map[string]string{"clientSecret": "guessed"})
	thief.source = f.source
	if e := thief.refusal(t, vault); e.Status != 403 {
		t.Errorf("its own Secret: %v", e)
	}
	thief.id.Spec.ClientPassword.Namespace = f.namespace
	if e := thief.refusal(t, vault); e.Status != 403 || !strings.Contains(e.Description, "--allow-cross-namespace-secrets") {
		t.Errorf("the other's Secret: %v", e)
	}
	thief.id.Spec.ClientPassword.Namespace = ""
	if e := thief.refusal(t, vault); e.Status != 403 {
		t.Errorf("its own Secret by default: %v", e)
	}
}

func TestCredentialsAreSentToKnownAuthoritiesOnly(t *testing.T) {
	f := newFixture(t, "right")
	f.put(t, map[string]string{"clientSecret": "right"})
	run(t, f.source)
	for _, authority := range []string{"https://evil.example/", "https://login.microsoftonline.com.evil.example/", "https://login.microsoftonline.com:444/", "https://login.microsoftonline.com@evil.example/", "%zz"} {
		f.id.Spec.ADEndpoint = authority
		if e := f.refusal(t, vault); e.Status != 403 || !strings.Contains(e.Description, "none of the authorities") {
			t.Errorf("%s: %v", authority, e)
		}
	}
	f.source.AuthorityHosts = []string{strings.TrimPrefix(f.URL, "http://")}
	f.id.Spec.ADEndpoint = f.URL
	if got := f.token(t, vault); got == "" {
		t.Error("an authority that was allowed is not used")
	}
}

func TestAChangedClientIDIsInForceAtOnce(t *testing.T) {
	f := newFixture(t, "right")
	f.put(t, map[string]string{"clientSecret": "right"})
	run(t, f.source)
	f.token(t, vault)
	changed := f.id.DeepCopy()
	changed.Spec.ClientID = "another"
	tokens, err := f.source.Tokens(t.Context(), changed, vault)
	if err != nil || tokens[0].ClientID != "another" || f.requests() != 2 {
		t.Errorf("got %v, %v after %d requests", tokens, err, f.requests())
	}
}

func TestIncompleteIdentitiesAreRefusedWithAWayOut(t *testing.T) {
	s := newFixture(t).source
	run(t, s)
	for _, c := range []struct {
		name   string
		change func(*v1.AzureIdentity)
		want   string
	}{
		{"no tenant", func(id *v1.AzureIdentity) { id.Spec.TenantID = "" }, "set spec.tenantID and spec.clientID"},
		{"no client", func(id *v1.AzureIdentity) { id.Spec.ClientID = "" }, "set spec.tenantID and spec.clientID"},
		{"no Secret", func(id *v1.AzureIdentity) { id.Spec.ClientPassword.Name = "" }, "name its Secret in spec.clientPassword"},
		{"a Secret that is not there", func(id *v1.AzureIdentity) { id.Spec.ClientPassword.Name = "missing" }, "does not exist"},
		{"an unknown type", func(id *v1.AzureIdentity) { id.Spec.Type = 7 }, "set spec.type to 0, 1 or 2"},
		{"a managed identity without its id", func(id *v1.AzureIdentity) { id.Spec.Type = v1.UserAssignedMSI }, "has no spec.resourceID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := identity("default", "app", v1.ServicePrincipal)
			c.change(id)
			tokens, err := s.Tokens(t.Context(), id, vault)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, %v", tokens, err)
			}
		})
	}
}

func TestOneIdentityAskedForByManyIsOneRequest(t *testing.T) {
	f := newFixture(t, "right")
	f.put(t, map[string]string{"clientSecret": "right"})
	run(t, f.source)
	var wg sync.WaitGroup
	errs := make(chan error, 500)
	for range 500 {
		wg.Go(func() {
			_, err := f.source.Tokens(t.Context(), f.id, vault)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatal(errors.Unwrap(err), err)
		}
	}
	if n := f.requests(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}
