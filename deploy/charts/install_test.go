package charts_test

import (
	"fmt"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy/charts"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

// One install on an empty cluster, looked at from every side, and its end.
func TestInstall(t *testing.T) {
	w := newWorld(t, &fresh, "pod-identity-system")
	stop := w.node(program(t, "mic"))
	vals := values(t, `{rbac: {createUserFacingClusterRoles: true},
  azureIdentities: {made: {resourceID: r, clientID: c, binding: {selector: s}}}}`)
	if err := w.install(podIdentity.load(t), vals); err != nil {
		t.Fatalf("%v; the Job's program said %q", err, stop())
	}
	if said := strings.Join(stop(), ""); !contains(said, "accessrequests.lanyard.id is served") {
		t.Errorf("the Job said %q", said)
	}
	t.Run("what the Job had is gone with it", w.sub(func(w *world) {
		for _, kind := range []string{"batch/v1 Job", "v1 ServiceAccount", "rbac.authorization.k8s.io/v1 ClusterRole", "rbac.authorization.k8s.io/v1 ClusterRoleBinding"} {
			w.gone(kind, release1+"-crds") // whatever name it had
			w.gone(kind, "aad-pod-identity-crds")
		}
	}))
	t.Run("rights", w.sub(func(w *world) { w.rights("aad-pod-identity-mic", "aad-pod-identity-nmi") }))
	t.Run("pod security", w.sub(func(w *world) { w.podSecurity() }))
	t.Run("uninstalling leaves what users made", w.sub(func(w *world) {
		users := &v1.AzureIdentity{TypeMeta: typeOf("AzureIdentity"), ObjectMeta: metav1.ObjectMeta{Name: "users-own", Namespace: "default"}, Spec: v1.AzureIdentitySpec{ClientID: "x"}}
		w.create(users)
		w.uninstall()
		w.there("aadpodidentity.k8s.io/v1 AzureIdentity", "default", "users-own")
		w.gone("aadpodidentity.k8s.io/v1 AzureIdentity", "made")
		w.gone("apps/v1 DaemonSet", "aad-pod-identity-nmi")
		w.gone("rbac.authorization.k8s.io/v1 ClusterRole", "aad-pod-identity-nmi")
	}))
	t.Run("installing again finds the CRDs and upgrades them", w.sub(func(w *world) {
		stop := w.node(program(w, "mic"))
		if err := w.install(podIdentity.load(w), vals); err != nil {
			w.Fatalf("%v; the Job's program said %q", err, stop())
		}
		stop()
		w.there("aadpodidentity.k8s.io/v1 AzureIdentity", "default", "users-own")
		w.uninstall()
	}))
}

// sub runs f with the world of a subtest.
func (w *world) sub(f func(*world)) func(*testing.T) {
	return func(t *testing.T) {
		inner := *w
		inner.T = t
		f(&inner)
	}
}

func typeOf(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: "aadpodidentity.k8s.io/v1", Kind: kind}
}

func asUnstructured(t testing.TB, o any) *unstructured.Unstructured {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		t.Fatal(err)
	}
	return &unstructured.Unstructured{Object: m}
}

// create makes an object, given as a typed one or as JSON's map.
func (w *world) create(o any) {
	w.Helper()
	u, ok := o.(map[string]any)
	if !ok {
		u = asUnstructured(w, o).Object
	}
	if err := w.objects.Create(w.Context(), &unstructured.Unstructured{Object: runtime.DeepCopyJSON(u)}); err != nil && !apierrors.IsAlreadyExists(err) {
		w.Fatal(err)
	}
}

// get reads an object of "group/version Kind"; a namespaced one without a
// namespace is looked for in the release's.
func (w *world) get(kind, namespace, name string) (*unstructured.Unstructured, error) {
	version, kind, _ := strings.Cut(kind, " ")
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(version)
	o.SetKind(kind)
	if namespaced, err := w.objects.IsObjectNamespaced(o); err != nil {
		return nil, err
	} else if namespaced && namespace == "" {
		namespace = w.namespace
	} else if !namespaced {
		namespace = ""
	}
	return o, w.objects.Get(w.Context(), client.ObjectKey{Namespace: namespace, Name: name}, o)
}

func (w *world) there(kind, namespace, name string) {
	w.Helper()
	if _, err := w.get(kind, namespace, name); err != nil {
		w.Errorf("%s %s: %v", kind, name, err)
	}
}

func (w *world) gone(kind, name string) {
	w.Helper()
	if _, err := w.get(kind, "", name); !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err) {
		w.Errorf("%s %s is still there (%v)", kind, name, err)
	}
}

// A right is what a SubjectAccessReview is asked.
type right struct{ verb, group, resource, namespace, name string }

func (w *world) may(account string, r right) bool {
	w.Helper()
	resource, sub, _ := strings.Cut(r.resource, "/")
	review, err := w.kube.AuthorizationV1().SubjectAccessReviews().Create(w.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   "system:serviceaccount:" + w.namespace + ":" + account,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + w.namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: r.verb, Group: r.group, Resource: resource, Subresource: sub, Namespace: r.namespace, Name: r.name,
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return review.Status.Allowed
}

func (w *world) rights(mic, nmi string) {
	w.Helper()
	const ours, lanyard = "aadpodidentity.k8s.io", "lanyard.id"
	for _, test := range []struct {
		account string
		right   right
		want    bool
	}{
		{nmi, right{"watch", "", "pods", "any", ""}, true},
		{nmi, right{"list", ours, "azureidentities", "", ""}, true},
		{nmi, right{"watch", ours, "azureassignedidentities", "", ""}, true},
		{nmi, right{"watch", ours, "azurepodidentityexceptions", "", ""}, true},
		{nmi, right{"watch", lanyard, "accessrequests", "", ""}, true},
		{nmi, right{"create", "events.k8s.io", "events", "any", ""}, true},
		{nmi, right{"patch", "events.k8s.io", "events", "any", ""}, true},
		{nmi, right{"get", "", "secrets", "any", "s"}, true},
		{nmi, right{"update", "", "secrets", "any", "s"}, false},
		{nmi, right{"create", "", "pods", "any", ""}, false},
		{nmi, right{"patch", "", "pods", "any", "p"}, false},
		{nmi, right{"patch", "", "nodes", "", "n"}, false},
		{nmi, right{"create", "", "pods/exec", "any", "p"}, false},
		{nmi, right{"create", "", "serviceaccounts/token", "any", "s"}, false},
		{nmi, right{"patch", ours, "azureidentities", "any", "i"}, false},
		{nmi, right{"create", ours, "azureassignedidentities", "any", ""}, false},
		{nmi, right{"approve", lanyard, "accessrequests", "any", "r"}, false},
		{nmi, right{"patch", lanyard, "accessrequests/status", "any", "r"}, false},
		{nmi, right{"patch", "apiextensions.k8s.io", "customresourcedefinitions", "", "x"}, false},
		{mic, right{"watch", "", "pods", "any", ""}, true},
		{mic, right{"watch", "", "nodes", "", ""}, true},
		{mic, right{"create", ours, "azureassignedidentities", "any", ""}, true},
		{mic, right{"delete", ours, "azureassignedidentities", "any", "a"}, true},
		{mic, right{"patch", ours, "azureidentities", "any", "i"}, true},
		{mic, right{"create", "coordination.k8s.io", "leases", "default", ""}, true},
		{mic, right{"update", "coordination.k8s.io", "leases", "default", "aad-pod-identity-mic"}, true},
		{mic, right{"update", "coordination.k8s.io", "leases", "default", "another"}, false},
		{mic, right{"update", "coordination.k8s.io", "leases", "kube-system", "aad-pod-identity-mic"}, false},
		{mic, right{"patch", lanyard, "accessrequests/status", "any", "r"}, true},
		{mic, right{"approve", lanyard, "accessrequests", "any", "r"}, true},
		{mic, right{"patch", ours, "azureidentities/status", "any", "i"}, true},
		{mic, right{"patch", ours, "azureidentitybindings/status", "any", "b"}, true},
		{mic, right{"create", "", "endpoints", "default", ""}, false},
		{nmi, right{"create", "authentication.k8s.io", "tokenreviews", "", ""}, false},
		{mic, right{"get", "", "secrets", "any", "s"}, false},
		{mic, right{"list", "", "secrets", "", ""}, false},
		{mic, right{"patch", "", "pods", "any", "p"}, false},
		{mic, right{"patch", "", "nodes", "", "n"}, false},
		{mic, right{"create", ours, "azureidentities", "any", ""}, false},
		{mic, right{"delete", ours, "azureidentitybindings", "any", "b"}, false},
		{mic, right{"create", lanyard, "accessrequests", "any", ""}, false},
		{mic, right{"patch", "apiextensions.k8s.io", "customresourcedefinitions", "", "x"}, false},
		{"aad-pod-identity-crds", right{"create", "apiextensions.k8s.io", "customresourcedefinitions", "", ""}, false},
	} {
		if got := w.may(test.account, test.right); got != test.want {
			w.Errorf("may %s %+v: %v, want %v", test.account, test.right, got, test.want)
		}
	}
}

// podSecurity asks the API server's own admission plugin.
func (w *world) podSecurity() {
	w.Helper()
	for _, level := range []string{"restricted", "privileged"} {
		w.create(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: level, Labels: map[string]string{"pod-security.kubernetes.io/enforce": level}}})
		account(w, level)
	}
	for name, test := range map[string]struct {
		kind, values string
		violations   []string // nil means none
	}{
		"mic with a principal of its own": {"Deployment", "{mic: {existingSecret: x}}", nil},
		"mic with the node's azure.json":  {"Deployment", "{}", []string{"hostPath", "runAsNonRoot", "runAsUser=0"}},
		"the Job":                         {"Job", "{}", nil},
		"nmi":                             {"DaemonSet", "{}", []string{"host namespaces", "unrestricted capabilities", "runAsNonRoot", "runAsUser=0"}},
	} {
		w.Run(name, func(t *testing.T) {
			pod := podOf(t, test.kind, values(t, test.values))
			pod.Namespace = "restricted"
			_, err := w.kube.CoreV1().Pods("restricted").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if len(test.violations) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !apierrors.IsForbidden(err) {
				t.Fatalf("error %v, want it forbidden", err)
			}
			_, list, _ := strings.Cut(err.Error(), `violates PodSecurity "restricted:latest": `)
			for _, v := range test.violations {
				if !contains(list, v) {
					t.Errorf("no violation %q in %q", v, list)
				}
			}
		})
	}
}

func account(w *world, namespace string) {
	// Pods need it, and its controller is not always faster.
	w.create(&corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: namespace}})
}

// podOf makes the pod that a workload of the release would make.
func podOf(t testing.TB, kind string, vals map[string]any) *corev1.Pod {
	t.Helper()
	for _, o := range objects(t, podIdentity.render(t, charts.Release{Values: vals})) {
		if o.GetKind() != kind {
			continue
		}
		return podFrom(t, o)
	}
	t.Fatalf("the release has no %s", kind)
	return nil
}

// podFrom makes the pod that a workload would make.
func podFrom(t testing.TB, workload *unstructured.Unstructured) *corev1.Pod {
	t.Helper()
	template, _, _ := unstructured.NestedMap(workload.Object, "spec", "template")
	pod := &corev1.Pod{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(template, pod); err != nil {
		t.Fatal(err)
	}
	pod.Name, pod.Spec.ServiceAccountName = strings.ToLower(workload.GetKind()), "default"
	return pod
}

// established waits until the CRDs are served.
func (w *world) established() {
	w.Helper()
	labtest.Eventually(w, w.Context(), func() error {
		for _, kind := range []string{"AzureIdentity", "AzureIdentityBinding", "AzurePodIdentityException"} {
			if _, err := w.get("aadpodidentity.k8s.io/v1 "+kind, "default", "none"); !apierrors.IsNotFound(err) {
				return fmt.Errorf("%s: %w", kind, err)
			}
		}
		return nil
	})
}
