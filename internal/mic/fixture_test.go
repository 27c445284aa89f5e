package mic_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/mic"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
	"github.com/lanyard-id/lanyard/internal/mic/machines"
)

var cluster = &labtest.Cluster{CRDs: deploy.FS}

const (
	subscription = "/subscriptions/11111111-2222-3333-4444-555555555555"
	group        = subscription + "/resourceGroups/nodes"
	idPrefix     = subscription + "/resourcegroups/myResourceGroup/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
	assignee     = "c0ffee00-0000-0000-0000-000000000000"
)

// A cloud holds the identities of machines in memory.
type cloud struct {
	mu       sync.Mutex
	machines map[string]map[string]bool // by keys
	gone     map[string]bool            // machines that do not exist
	refuse   func(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error
}

func (c *cloud) Identities(_ context.Context, machine azure.ResourceID) ([]azure.ResourceID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone[machine.Key()] {
		return nil, &arm.Error{Status: http.StatusNotFound, Code: "ResourceNotFound", Message: "not found"}
	}
	var out []azure.ResourceID
	for k := range c.machines[machine.Key()] {
		id, err := azure.ParseResourceID(k)
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, nil
}

func (c *cloud) Update(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error {
	c.mu.Lock()
	refuse := c.refuse
	c.mu.Unlock()
	if refuse != nil {
		if err := refuse(ctx, machine, add, remove); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.machines[machine.Key()]
	if m == nil {
		m = map[string]bool{}
		if c.machines == nil {
			c.machines = map[string]map[string]bool{}
		}
		c.machines[machine.Key()] = m
	}
	for _, id := range add {
		m[id.Key()] = true
	}
	for _, id := range remove {
		delete(m, id.Key())
	}
	return nil
}

// put makes identities exist on a machine as somebody else's.
func (c *cloud) put(machine string, names ...string) {
	for _, n := range names {
		_ = c.Update(context.Background(), must(azure.ParseResourceID(machine)), []azure.ResourceID{must(azure.ParseResourceID(idPrefix + n))}, nil)
	}
}

func (c *cloud) setRefuse(f func(ctx context.Context, machine azure.ResourceID, add, remove []azure.ResourceID) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = f
}

// has returns the names of the identities of a machine, sorted.
func (c *cloud) has(machine string) string {
	ids, _ := c.Identities(context.Background(), must(azure.ParseResourceID(machine)))
	var names []string
	for _, id := range ids {
		names = append(names, id.Name())
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A world is a test's view of the cluster.
type world struct {
	*testing.T
	client.Client
	ns   string
	node string // its node, on scaleSet
	set  string // resource id of its own scale set
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config := cluster.Config(t)
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { // the last one: everything was stopped
		// Connections to the API server are shared by all clients and stay. What is
		// being cancelled may take its time on a machine that is busy.
		var err error
		for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); {
			err = goleak.Find(before, goleak.IgnoreAnyFunction("net/http.(*http2clientConnReadLoop).run"), goleak.IgnoreAnyFunction("golang.org/x/net/http2.(*clientConnReadLoop).run"))
			if err == nil {
				return
			}
		}
		t.Error(err)
	})
	c, err := client.New(config, client.Options{Scheme: must(mic.Scheme())})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, Client: c, ns: cluster.Namespace(t)}
	w.node, w.set = "node-"+w.ns, group+"/providers/Microsoft.Compute/virtualMachineScaleSets/set-"+w.ns
	w.addNode(w.node, "azure://"+w.set+"/virtualMachines/0")
	return w
}

func (w *world) make(objects ...client.Object) {
	w.Helper()
	for _, o := range objects {
		if err := w.Create(w.Context(), o); err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := w.Delete(ctx, o, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
				w.Error(err)
			}
		})
	}
}

func (w *world) remove(o client.Object) {
	w.Helper()
	if err := w.Delete(w.Context(), o, client.GracePeriodSeconds(0)); err != nil {
		w.Fatal(err)
	}
}

func (w *world) addNode(name, provider string) {
	w.Helper()
	w.make(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{ProviderID: provider}})
}

func (w *world) pod(namespace, name, node, label string) *corev1.Pod {
	w.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{v1.BindingLabel: label}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
	}
	w.make(p)
	return p
}

// bind makes an identity and a binding of the same name and selector.
func (w *world) bind(name string) (*v1.AzureIdentity, *v1.AzureIdentityBinding) {
	w.Helper()
	id := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}, Spec: v1.AzureIdentitySpec{ResourceID: idPrefix + name, ClientID: "client-" + name}}
	b := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: name, Selector: w.ns + "-" + name}}
	w.make(id, b)
	return id, b
}

func (w *world) label(name string) string { return w.ns + "-" + name }

// assigned returns the assignments of a pod, by name.
func (w *world) assigned(namespace, pod string) ([]v1.AzureAssignedIdentity, error) {
	var list v1.AzureAssignedIdentityList
	if err := w.List(w.Context(), &list); err != nil {
		return nil, err
	}
	list.Items = slices.DeleteFunc(list.Items, func(a v1.AzureAssignedIdentity) bool {
		return a.Spec.PodNamespace != namespace || a.Spec.Pod != pod
	})
	slices.SortFunc(list.Items, func(a, b v1.AzureAssignedIdentity) int { return cmp.Compare(a.Name, b.Name) })
	return list.Items, nil
}

// state describes the assignments of a pod: "name=Assigned name=Created".
func (w *world) state(namespace, pod string) (string, error) {
	items, err := w.assigned(namespace, pod)
	var words []string
	for _, a := range items {
		words = append(words, a.Spec.AzureIdentityRef.Name+"="+a.Status.Status)
	}
	return strings.Join(words, " "), err
}

// await waits until a pod's assignments are as described.
func (w *world) await(namespace, pod, want string) {
	w.Helper()
	w.eventually(func() error {
		got, err := w.state(namespace, pod)
		return errors.Join(err, differ("assignments of "+pod, got, want))
	})
}

// awaitCloud waits until a machine has exactly these identities.
func (w *world) awaitCloud(c *cloud, machine, want string) {
	w.Helper()
	w.eventually(func() error { return differ("identities of the machine", c.has(machine), want) })
}

func (w *world) eventually(check func() error) {
	w.Helper()
	labtest.Eventually(w.T, w.Context(), check)
}

func differ(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s: %q, want %q", what, got, want)
	}
	return nil
}

// awaitEvent waits for an event on an object whose note contains text.
func (w *world) awaitEvent(o client.Object, kind, reason, text string) {
	w.Helper()
	w.eventually(func() error {
		var list eventsv1.EventList
		if err := w.List(w.Context(), &list, client.InNamespace(o.GetNamespace())); err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if e.Regarding.Kind != kind || e.Regarding.Name != o.GetName() {
				continue
			}
			if e.Reason == reason && strings.Contains(e.Note, text) {
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Note)
		}
		return fmt.Errorf("no event %s with %q on %s %s; there are %q", reason, text, kind, o.GetName(), seen)
	})
}

// awaitCondition waits until the reason why a pod's only assignment does not
// get on contains text.
func (w *world) awaitCondition(namespace, pod, text string) {
	w.Helper()
	w.eventually(func() error {
		items, err := w.assigned(namespace, pod)
		if err != nil || len(items) != 1 {
			return fmt.Errorf("%d assignments, %w", len(items), err)
		}
		for _, c := range items[0].Status.Conditions {
			if c.Type == v1.ConditionAssigned && strings.Contains(c.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v, want %q", items[0].Status.Conditions, text)
	})
}

// install applies the manifest that users install; without it the controller
// may do nothing.
func (w *world) install() {
	w.Helper()
	w.apply("mic")
	w.eventually(func() error { // the authorizer hears of roles a little later
		review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: account, ResourceAttributes: &authorizationv1.ResourceAttributes{Group: "lanyard.id", Resource: "accessrequests", Verb: "list"},
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

// apply creates what a manifest holds, but for Deployments.
func (w *world) apply(manifest string) {
	w.Helper()
	docs, err := deploy.Manifests(manifest)
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
}

// as is a client of somebody else, with a role in the world's namespace.
func (w *world) as(role, user string, groups ...string) client.Client {
	w.Helper()
	w.make(&rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: user},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	})
	config := cluster.Config(w.T)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	c, err := client.New(config, client.Options{Scheme: w.Scheme()})
	if err != nil {
		w.Fatal(err)
	}
	return c
}

// account is the user of the manifest's service account.
const account = "system:serviceaccount:default:aad-pod-id-mic-service-account"

// run starts a controller with the rights of its manifest; stop ends it and waits. It is stopped at the end of
// the test in any case.
func (w *world) run(c machines.Cloud, edit ...func(*mic.Config)) (stop func()) {
	w.Helper()
	w.install()
	kube := cluster.Config(w.T)
	kube.Impersonate = rest.ImpersonationConfig{UserName: account, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"}}
	config := mic.Config{Kubernetes: kube, Cloud: c, Assignee: func() string { return assignee }, ReportDelay: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(w.Output(), nil))}
	for _, e := range edit {
		e(&config)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mic.Run(ctx, config) }()
	stop = sync.OnceFunc(func() {
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
	w.Cleanup(stop)
	return stop
}
