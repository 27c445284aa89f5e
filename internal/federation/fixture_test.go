package federation_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

const (
	issuer    = "https://oidc.lanyard.test/cluster/"
	clusterID = "the-cluster"
	account   = "system:serviceaccount:lanyard-system:lanyard-federation"
)

var cluster = &labtest.Cluster{CRDs: deploy.FS, Args: []string{"--service-account-issuer=" + issuer}}

// A world is a cluster beside a cloud.
type world struct {
	*testing.T
	client.Client
	ns    string
	cloud *cloudtest.Cloud
	azure *azureSpy
	log   *cloudtest.Buffer
}

// azureSpy is Azure as the controller sees it, with faults.
type azureSpy struct {
	federation.Azure
	mu     sync.Mutex
	calls  []string
	refuse func(operation string, p federated.Parent, name string) error
	after  func(operation string) // once it was done
	active int
	closed bool
}

// drain lets what was begun end, and nothing begin: a cloud must not be taken
// away under a request.
func (s *azureSpy) drain(t *testing.T) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	labtest.Eventually(t, context.Background(), func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.active > 0 {
			return fmt.Errorf("%d operations are under way", s.active)
		}
		return nil
	})
}

func (s *azureSpy) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = false
}

func (s *azureSpy) enter(operation string, p federated.Parent, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("the test ends")
	}
	s.calls = append(s.calls, operation+" "+p.DisplayName)
	if s.refuse != nil {
		if err := s.refuse(operation, p, name); err != nil {
			return err
		}
	}
	s.active++
	return nil
}

func (s *azureSpy) leave(operation string) {
	s.mu.Lock()
	s.active--
	after := s.after
	if operation == "find" || operation == "list" {
		after = nil
	}
	s.mu.Unlock()
	if after != nil {
		after(operation)
	}
}

func (s *azureSpy) set(refuse func(operation string, p federated.Parent, name string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

func (s *azureSpy) count(call string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (s *azureSpy) Find(ctx context.Context, id string) (federated.Parent, error) {
	if err := s.enter("find", federated.Parent{DisplayName: id}, ""); err != nil {
		return federated.Parent{}, err
	}
	defer s.leave("find")
	return s.Azure.Find(ctx, id)
}

func (s *azureSpy) FindResource(ctx context.Context, id string) (federated.Parent, error) {
	if err := s.enter("find", federated.Parent{DisplayName: id}, ""); err != nil {
		return federated.Parent{}, err
	}
	defer s.leave("find")
	return s.Azure.FindResource(ctx, id)
}

func (s *azureSpy) List(ctx context.Context, p federated.Parent) ([]federated.Credential, error) {
	if err := s.enter("list", p, ""); err != nil {
		return nil, err
	}
	defer s.leave("list")
	return s.Azure.List(ctx, p)
}

func (s *azureSpy) PutListed(ctx context.Context, p federated.Parent, listed []federated.Credential, want federated.Credential) error {
	if err := s.enter("put", p, want.Name); err != nil {
		return err
	}
	defer s.leave("put")
	return s.Azure.PutListed(ctx, p, listed, want)
}

func (s *azureSpy) Delete(ctx context.Context, p federated.Parent, name string) (bool, error) {
	if err := s.enter("delete", p, name); err != nil {
		return false, err
	}
	defer s.leave("delete")
	return s.Azure.Delete(ctx, p, name)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config := cluster.Config(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { // the last one: everything was stopped
		// Connections to the API server are shared by all clients and stay; client-go
		// leaves a goroutine behind for each watch of metadata that ends with an
		// event under way.
		var err error
		for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); {
			err = goleak.Find(before, goleak.IgnoreAnyFunction("k8s.io/apimachinery/pkg/watch.(*filteredWatch).loop"),
				goleak.IgnoreAnyFunction("net/http.(*http2clientConnReadLoop).run"), goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*clientConnReadLoop).run"))
			if err == nil {
				return
			}
		}
		t.Error(err)
	})
	scheme, err := federation.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Client: c, ns: cluster.Namespace(t), log: &cloudtest.Buffer{}, cloud: cloudtest.New(t)}
	w.trustIssuer(config)
	public, err := arm.CloudByName("")
	if err != nil {
		t.Fatal(err)
	}
	w.azure = &azureSpy{Azure: &federated.Client{Credential: w.cloud.Owner(), Cloud: public, Options: w.cloud.Options()}}
	w.install()
	return w
}

// trustIssuer makes the cloud's token service read the cluster's keys from its
// API server, whatever the issuer's name.
func (w *world) trustIssuer(config *rest.Config) {
	w.Helper()
	k, err := kubernetes.NewForConfig(config)
	if err != nil {
		w.Fatal(err)
	}
	issuers := &http.Client{Transport: round(func(r *http.Request) (*http.Response, error) {
		path := r.URL.Path
		if i := strings.Index(path, "/.well-known/"); i >= 0 {
			path = path[i:]
		} else {
			path = "/openid/v1/jwks"
		}
		answer := httptest.NewRecorder()
		document, err := k.Discovery().RESTClient().Get().AbsPath(path).DoRaw(r.Context())
		if err != nil {
			return nil, err
		}
		_, _ = answer.Write(document)
		return answer.Result(), nil
	})}
	l, err := login.New(login.Config{DB: w.cloud.DB, Issuers: issuers, Now: w.cloud.Now, Logger: w.cloud.Logger()})
	if err != nil {
		w.Fatal(err)
	}
	for _, h := range azure.LoginHosts() {
		w.cloud.Handle(h, l.Handler())
	}
}

type round func(*http.Request) (*http.Response, error)

func (r round) RoundTrip(req *http.Request) (*http.Response, error) { return r(req) }

// install applies the manifest that users install, but for its Deployment.
func (w *world) install() {
	w.Helper()
	docs, err := deploy.Manifests("federation")
	if err != nil {
		w.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(docs[0]), "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			w.Fatal(err)
		}
		if u.GetKind() == "Deployment" {
			continue
		}
		if err := w.Create(w.Context(), u); err != nil && !apierrors.IsAlreadyExists(err) {
			w.Fatal(err)
		}
	}
	w.eventually(func() error { // the authorizer hears of roles a little later
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: account, ResourceAttributes: &authorizationv1.ResourceAttributes{Resource: "serviceaccounts", Subresource: "token", Verb: "create"},
		}}
		if err := w.Create(w.Context(), review); err != nil {
			return err
		}
		if !review.Status.Allowed {
			return errors.New("the controller may do nothing yet")
		}
		return nil
	})
}

// asController are the settings of a client with the controller's rights.
func (w *world) asController() *rest.Config {
	w.Helper()
	c := cluster.Config(w.T)
	c.Impersonate = rest.ImpersonationConfig{UserName: account, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:lanyard-system", "system:authenticated"}}
	return c
}

// config is what a test's controller runs with.
func (w *world) config() federation.Config {
	w.Helper()
	return federation.Config{
		Kubernetes: w.asController(), Azure: w.azure, Exchange: &entra.Client{HTTP: w.cloud.Client}, ProbeResource: azure.ResourceManagement, ProbeDelay: 10 * time.Millisecond,
		Audience: federated.Audience, TenantID: w.cloud.Tenant.ID, ClusterID: clusterID, Issuer: issuer, Interval: time.Hour, Retry: 20 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(io.MultiWriter(w.Output(), w.log), nil)),
	}
}

// bind gives a user a role in the world's namespace.
func (w *world) bind(role, user string) {
	w.Helper()
	w.make(&rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: user},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	})
}

// run starts a controller with the rights of its manifest; stop ends it and waits.
func (w *world) run(edit ...func(*federation.Config)) (stop func()) {
	w.Helper()
	config := w.config()
	for _, e := range edit {
		e(&config)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- federation.Run(ctx, config) }()
	w.azure.open()
	stop = sync.OnceFunc(func() {
		w.azure.drain(w.T)
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.Errorf("the controller ended with %v", err)
			}
		case <-time.After(30 * time.Second):
			w.Error("the controller does not end")
		}
	})
	w.Cleanup(func() {
		stop()
		w.free()
	})
	return stop
}

// free takes finalizers away, so that nothing stays.
func (w *world) free() {
	labtest.Eventually(w.T, context.Background(), func() error {
		var list lanyard.FederatedIdentityList
		if err := w.List(context.Background(), &list, client.InNamespace(w.ns)); err != nil {
			return err
		}
		for i := range list.Items {
			f := &list.Items[i]
			if f.DeletionTimestamp.IsZero() {
				_ = w.Delete(context.Background(), f)
			}
			if len(f.Finalizers) == 0 {
				continue
			}
			next := f.DeepCopy()
			next.Finalizers = nil
			if err := w.Patch(context.Background(), next, client.MergeFrom(f)); client.IgnoreNotFound(err) != nil {
				return err
			}
		}
		return nil
	})
}

func (w *world) eventually(check func() error) {
	w.Helper()
	labtest.Eventually(w.T, w.Context(), check)
}

func (w *world) make(objects ...client.Object) {
	w.Helper()
	for _, o := range objects {
		if err := w.Create(w.Context(), o); err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() {
			if err := w.Delete(context.Background(), o); client.IgnoreNotFound(err) != nil {
				w.Error(err)
			}
		})
	}
}

// identity makes a managed identity and returns it.
func (w *world) identity(name string) federated.Parent {
	w.Helper()
	id := "/subscriptions/" + w.cloud.Subscription + "/resourceGroups/team"
	w.cloud.Do(http.MethodPut, id, map[string]any{"location": "eastus"}, nil)
	id += "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + name
	w.cloud.Do(http.MethodPut, id, map[string]any{"location": "eastus"}, nil)
	p, err := w.azure.Azure.FindResource(w.Context(), id)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// application makes an application and returns it.
func (w *world) application(name string) federated.Parent {
	w.Helper()
	sp, _ := w.cloud.Application(name)
	p, err := w.azure.Azure.Find(w.Context(), sp.AppID)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

// allow makes a policy for the world's namespace.
func (w *world) allow(identities ...lanyard.PolicyIdentity) *lanyard.FederationPolicy {
	w.Helper()
	p := &lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-"}, Spec: lanyard.FederationPolicySpec{Namespaces: []string{w.ns}, Identities: identities}}
	w.make(p)
	return p
}

func byClient(p federated.Parent) lanyard.PolicyIdentity {
	return lanyard.PolicyIdentity{ClientID: p.ClientID}
}

// account makes an annotated service account.
func (w *world) account(name, clientID string, further ...string) *corev1.ServiceAccount {
	w.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name, Annotations: map[string]string{workloadidentity.AnnotationClientID: clientID}}}
	if len(further) > 0 {
		sa.Annotations[lanyard.AnnotationClientIDs] = strings.Join(further, ", ")
	}
	w.make(sa)
	return sa
}

// byHand makes a FederatedIdentity.
func (w *world) byHand(name string, spec lanyard.FederatedIdentitySpec) *lanyard.FederatedIdentity {
	w.Helper()
	f := &lanyard.FederatedIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}, Spec: spec}
	w.make(f)
	return f
}

func (w *world) get(name string) (*lanyard.FederatedIdentity, error) {
	var f lanyard.FederatedIdentity
	err := w.Get(w.Context(), client.ObjectKey{Namespace: w.ns, Name: name}, &f)
	return &f, err
}

// await waits until a condition of an object is as described, such as
// "Created=False LimitReached".
func (w *world) await(name, want string) *lanyard.FederatedIdentity {
	w.Helper()
	kind, _, _ := strings.Cut(want, "=")
	var f *lanyard.FederatedIdentity
	w.eventually(func() error {
		var err error
		if f, err = w.get(name); err != nil {
			return err
		}
		c := meta.FindStatusCondition(f.Status.Conditions, kind)
		if c == nil {
			return fmt.Errorf("%s has no condition %s yet: %+v", name, kind, f.Status.Conditions)
		}
		if got := fmt.Sprintf("%s=%s %s", kind, c.Status, c.Reason); got != want {
			return fmt.Errorf("%s: %s (%s), want %s", name, got, c.Message, want)
		}
		return nil
	})
	return f
}

// awaitGone waits until an object is gone.
func (w *world) awaitGone(name string) {
	w.Helper()
	w.eventually(func() error {
		f, err := w.get(name)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("%s is still there: %+v (%w)", name, f.Status.Conditions, err)
	})
}

// credentials are the subjects of an identity's credentials, with their issuers,
// sorted.
func (w *world) credentials(p federated.Parent) ([]string, error) {
	all, err := w.azure.Azure.List(w.Context(), p)
	var out []string
	for _, c := range all {
		out = append(out, strings.TrimPrefix(c.Subject, "system:serviceaccount:"+w.ns+":")+" "+c.Issuer)
	}
	slices.Sort(out)
	return out, err
}

// awaitCredentials waits until an identity has credentials for exactly these
// service accounts, each trusting the issuer unless it says another.
func (w *world) awaitCredentials(p federated.Parent, names ...string) {
	w.Helper()
	for i, n := range names {
		if !strings.Contains(n, " ") {
			names[i] = n + " " + issuer
		}
	}
	w.eventually(func() error {
		got, err := w.credentials(p)
		if err != nil || !slices.Equal(got, names) {
			return fmt.Errorf("credentials of %s: %q, want %q (%w)", p.DisplayName, got, names, err)
		}
		return nil
	})
}

// put writes a credential as somebody else.
func (w *world) put(p federated.Parent, c federated.Credential) {
	w.Helper()
	if err := w.azure.Azure.PutListed(w.Context(), p, nil, c); err != nil {
		w.Fatal(err)
	}
}

// awaitEvent waits for an event on an object whose note contains text.
func (w *world) awaitEvent(kind, name, reason, text string) {
	w.Helper()
	w.eventually(func() error {
		var list eventsv1.EventList
		if err := w.List(w.Context(), &list, client.InNamespace(w.ns)); err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if e.Regarding.Kind != kind || e.Regarding.Name != name {
				continue
			}
			if e.Reason == reason && strings.Contains(e.Note, text) {
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Note)
		}
		return fmt.Errorf("no event %s with %q on %s %s; there are %q", reason, text, kind, name, seen)
	})
}

// update changes the cloud's state behind everybody's back.
func (w *world) update(f func(*state.Tx) error) { w.cloud.Update(f) }

// deleteByHand removes all credentials of an identity, as a person would.
func (w *world) deleteByHand(p federated.Parent) {
	w.Helper()
	all, err := w.azure.Azure.List(w.Context(), p)
	if err != nil {
		w.Fatal(err)
	}
	w.update(func(tx *state.Tx) error {
		parent := p.ObjectID
		if p.Kind == federated.ManagedIdentity {
			parent = p.PrincipalID
		}
		for _, c := range all {
			if _, err := directory.DeleteFederatedCredential(tx, parent, c.Name); err != nil {
				return err
			}
		}
		return nil
	})
}

func fill(w *world, p federated.Parent, n int) {
	w.Helper()
	for i := range n {
		w.put(p, federated.Credential{Name: fmt.Sprintf("foreign-%02d", i), Issuer: "https://elsewhere.example", Subject: url.PathEscape(fmt.Sprint(i)), Audience: federated.Audience})
	}
}

// noTokens fails if anything that looks like a token was logged.
func (w *world) noTokens() {
	w.Helper()
	if strings.Contains(w.log.String(), "eyJ") {
		w.Error("a token is in the log")
	}
}

// remove deletes a service account and waits until its object is gone.
func (w *world) remove(name string) {
	w.Helper()
	if err := w.Delete(w.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}}); err != nil {
		w.Fatal(err)
	}
	w.awaitGone(name)
}
