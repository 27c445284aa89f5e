package charts_test

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
)

const (
	adminSecret  = "aadpodidentity-admin-secret" // the lab makes it, for the plain manifests
	startupTaint = "lanyard.id/nmi-not-ready"
	crdKind      = "apiextensions.k8s.io/v1 CustomResourceDefinition"
)

func podIdentityOnTheLab(w *world, l *labHandle) {
	w.removeLabsOwn()
	w.createAdminSecret()
	vpl := l.identity("vpl-id") // it may read the vault
	identity := fmt.Sprintf("resourceID: %q, clientID: %q", vpl, l.clientID(w.T, vpl))
	done := w.steps()
	if err := w.install(podIdentity.load(w), values(w, `{mic: {tag: dev, existingSecret: `+adminSecret+`}, nmi: {tag: dev},
  azureIdentities: {first: {namespace: default, `+identity+`, binding: {selector: first}}}}`)); err != nil {
		w.Fatalf("installing: %v", err)
	}
	done("installed")
	w.succeeds(l.workload("first", "imds", map[string]string{"aadpodidbinding": "first"}))
	done("a pod had a token")
	users := &v1.AzureIdentity{TypeMeta: typeOf("AzureIdentity"), ObjectMeta: metav1.ObjectMeta{Name: "users-own", Namespace: "default"}, Spec: v1.AzureIdentitySpec{ClientID: "x"}}
	w.create(users)

	w.taint(l.Node) // as a new node is made where startupTaint is set
	if err := w.upgrade(podIdentity.load(w), values(w, `{mic: {replicas: 1, startupTaint: `+startupTaint+`}, nmi: {blockHostNetwork: true},
  azureIdentities: {second: {namespace: default, `+identity+`, binding: {selector: second}}}}`)); err != nil {
		w.Fatalf("upgrading: %v", err)
	}
	done("upgraded")
	w.succeeds(l.workload("second", "imds", map[string]string{"aadpodidbinding": "second"})) // which mic had to take the taint away for
	done("a pod had a token")

	w.uninstall()
	done("uninstalled")
	for _, name := range []string{"first", "second"} {
		for _, kind := range []string{"AzureIdentity", "AzureIdentityBinding"} {
			if _, err := w.get("aadpodidentity.k8s.io/v1 "+kind, "default", name); !apierrors.IsNotFound(err) {
				w.Errorf("%s %s of the release: %v, want it gone", kind, name, err)
			}
		}
	}
	w.there("aadpodidentity.k8s.io/v1 AzureIdentity", "default", "users-own")
	for _, crd := range w.crds() {
		w.there(crdKind, "", crd.GetName())
	}
}

// removeLabsOwn deletes what the lab installed from the plain manifests, with
// the CRDs, until nothing of it runs: a release adopts no object.
func (w *world) removeLabsOwn() {
	w.Helper()
	manifests, err := deploy.Manifests("mic", "nmi", "access")
	if err != nil {
		w.Fatal(err)
	}
	var workloads, rest []*unstructured.Unstructured
	for _, m := range manifests {
		for _, o := range parse(w, m) {
			if o.GroupVersionKind().Group == "apps" {
				workloads = append(workloads, o)
			} else {
				rest = append(rest, o)
			}
		}
	}
	w.remove(workloads) // with its rights, mic gives up its lease as it ends
	w.remove(rest)
	w.remove(w.crds())
}

func (w *world) crds() []*unstructured.Unstructured {
	w.Helper()
	docs, err := deploy.CRDs(deploy.PodIdentity)
	if err != nil {
		w.Fatal(err)
	}
	var list []*unstructured.Unstructured
	for _, doc := range docs {
		list = append(list, parse(w, doc)...)
	}
	return list
}

// createAdminSecret copies the lab's into the release's namespace.
func (w *world) createAdminSecret() {
	w.Helper()
	labs, err := w.kube.CoreV1().Secrets("default").Get(w.Context(), adminSecret, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	w.create(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: w.namespace}})
	w.create(&corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: adminSecret, Namespace: w.namespace}, Data: labs.Data})
}

func (w *world) taint(node string) {
	w.Helper()
	patch := `{"spec": {"taints": [{"key": "` + startupTaint + `", "effect": "NoSchedule"}]}}`
	if _, err := w.kube.CoreV1().Nodes().Patch(w.Context(), node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		w.Fatal(err)
	}
}
