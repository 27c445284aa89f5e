package mic_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic"
)

// documents reads the manifests of mission document 001 as they are written
// there, with the placeholders filled.
func documents(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	data, err := os.ReadFile("testdata/document001.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var out []*unstructured.Unstructured
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		u.SetNamespace("default")
		out = append(out, u)
	}
	return out
}

func TestTheManifestsOfDocument001WorkAsWritten(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c)
	w.eventually(func() error {
		return w.Get(w.Context(), types.NamespacedName{Namespace: "default", Name: "default"}, &corev1.ServiceAccount{})
	})
	docs := documents(t)
	for _, d := range docs {
		w.make(d.DeepCopy())
	}
	pod := w.pod("default", "test-id-pod", w.node, "little-pod-binding")
	w.await("default", "test-id-pod", "vpl-id=Assigned")
	w.awaitCloud(c, w.set, "vpl-id")

	var a v1.AzureAssignedIdentity
	if err := w.Get(w.Context(), types.NamespacedName{Namespace: "default", Name: "test-id-pod-default-vpl-id"}, &a); err != nil {
		t.Fatal(err)
	}
	got := []string{a.Labels["nodename"], a.Spec.NodeName, a.Spec.Pod, a.Spec.PodNamespace, a.Spec.AzureIdentityRef.Name, a.Spec.AzureIdentityRef.Kind, a.Spec.AzureIdentityRef.Spec.ClientID, a.Spec.AzureBindingRef.Name, a.Spec.AzureBindingRef.Spec.Selector, strings.Join(a.Finalizers, ","), fmt.Sprint(a.Status.AvailableReplicas)}
	want := []string{w.node, w.node, "test-id-pod", "default", "vpl-id", "AzureIdentity", "6a2b7c1e-0f5d-4a1c-9a55-0b1f7f6f2d11", "vpl-id-to-little-pod", "little-pod-binding", "azureassignedidentity.finalizers.aadpodidentity.k8s.io", "1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the assignment (-want +got)\n%s", diff)
	}
	w.awaitEvent(a.Spec.AzureBindingRef, v1.KindAzureIdentityBinding, "binding applied", "Binding vpl-id-to-little-pod applied on node "+w.node+" for pod test-id-pod-default-vpl-id")

	spec := func(d *unstructured.Unstructured) map[string]any {
		u := &unstructured.Unstructured{}
		u.SetGroupVersionKind(d.GroupVersionKind())
		if err := w.Get(w.Context(), client.ObjectKeyFromObject(d), u); err != nil {
			t.Fatal(err)
		}
		s, _, _ := unstructured.NestedMap(u.Object, "spec")
		return s
	}
	normal := []map[string]any{
		{"type": int64(0), "resourceID": idPrefix + "vpl-id", "clientID": "6a2b7c1e-0f5d-4a1c-9a55-0b1f7f6f2d11"},
		{"azureIdentity": "vpl-id", "selector": "little-pod-binding"},
	}
	awaitNormal := func() {
		t.Helper()
		for i, d := range docs {
			w.eventually(func() error {
				if diff := cmp.Diff(normal[i], spec(d)); diff != "" {
					return errors.New(diff)
				}
				return nil
			})
		}
	}
	awaitNormal()

	// What kubectl apply sends when the same old manifests are applied again:
	// the fields that the live object lacks.
	apply := func(d *unstructured.Unstructured, fields string) {
		t.Helper()
		if err := w.Patch(w.Context(), d.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"spec":`+fields+`}`))); err != nil {
			t.Fatal(err)
		}
	}
	apply(docs[1], `{"AzureIdentity":"vpl-id","Selector":"little-pod-binding"}`)
	awaitNormal()
	w.await("default", "test-id-pod", "vpl-id=Assigned")
	// And when the old manifest was changed in between.
	apply(docs[1], `{"AzureIdentity":"vpl-id","Selector":"other"}`)
	normal[1]["selector"] = "other"
	awaitNormal()
	w.await("default", "test-id-pod", "")
	w.awaitCloud(c, w.set, "")

	apply(docs[1], `{"Selector":"little-pod-binding"}`)
	w.await("default", "test-id-pod", "vpl-id=Assigned")
	w.remove(pod)
	w.await("default", "test-id-pod", "")
	w.awaitCloud(c, w.set, "")
}

func TestAConflictOfSpellingsIsReported(t *testing.T) {
	w := newWorld(t)
	w.run(&cloud{})
	id := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"clientID": "new", "ClientID": "old"}}}
	id.SetGroupVersionKind(v1.GroupVersion().WithKind(v1.KindAzureIdentity))
	id.SetNamespace(w.ns)
	id.SetName("i")
	w.make(id)
	w.awaitEvent(id, v1.KindAzureIdentity, "SpellingConflict", "spec.clientID and spec.ClientID differ: clientID stays")
	w.eventually(func() error {
		err := w.Get(w.Context(), client.ObjectKeyFromObject(id), id)
		return errors.Join(err, differ("spec", fmt.Sprint(id.Object["spec"]), "map[clientID:new]"))
	})
}

func TestUnknownFieldsArePruned(t *testing.T) {
	w := newWorld(t)
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(v1.GroupVersion().WithKind(v1.KindAzureIdentity))
	u.SetNamespace(w.ns)
	u.SetName("i")
	u.Object["spec"] = map[string]any{"clientID": "c", "ClientID": "d", "unknown": "x", "clientPassword": map[string]any{"Name": "n", "extra": "x"}}
	w.make(u)
	want := map[string]any{"clientID": "c", "ClientID": "d", "clientPassword": map[string]any{"Name": "n"}}
	if diff := cmp.Diff(want, u.Object["spec"]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestBindingsStayInTheirNamespaceIfTheyMust(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	other := cluster.Namespace(t)
	w.run(c, func(c *mic.Config) { c.ForceNamespaced = true })
	_, b := w.bind("i")
	w.pod(w.ns, "here", w.node, w.label("i"))
	w.pod(other, "there", w.node, w.label("i"))
	w.await(w.ns, "here", "i=Assigned")
	w.await(other, "there", "")
	items, err := w.assigned(w.ns, "here")
	if err != nil || items[0].Namespace != w.ns || items[0].Spec.AzureBindingRef.Name != b.Name {
		t.Errorf("the assignment is %+v, %v", items, err)
	}
}

func TestWhatIsWrittenWronglyIsToldInPlainWords(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.addNode("bare-"+w.ns, "kind://local/node")
	w.run(c)
	bad := &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "bad"}, Spec: v1.AzureIdentitySpec{ResourceID: "vpl-id", ClientID: "c"}}
	bind := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "bad"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "bad", Selector: w.label("bad")}}
	lost := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "lost"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "nobody", Selector: w.label("lost")}}
	w.make(bad, bind, lost)
	_, good := w.bind("good")
	w.pod(w.ns, "pod-bad", w.node, w.label("bad"))
	w.pod(w.ns, "pod-lost", w.node, w.label("lost"))
	w.pod(w.ns, "pod-bare", "bare-"+w.ns, w.label("good"))
	w.awaitEvent(bad, v1.KindAzureIdentity, "InvalidResourceID", "az identity show")
	w.awaitEvent(bind, v1.KindAzureIdentityBinding, "InvalidResourceID", "spec.resourceID")
	w.awaitEvent(lost, v1.KindAzureIdentityBinding, "IdentityMissing", "there is no AzureIdentity nobody in namespace "+w.ns)
	w.awaitEvent(good, v1.KindAzureIdentityBinding, "NoMachine", `providerID "kind://local/node"`)
	w.awaitCondition(w.ns, "pod-bare", "not a machine of Azure")
	w.await(w.ns, "pod-bad", "")
}

func TestARemovedIdentityIsPutBackAtTheNextRecheck(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	w.run(c, func(c *mic.Config) { c.Recheck = 200 * time.Millisecond })
	w.bind("i")
	w.pod(w.ns, "p", w.node, w.label("i"))
	w.await(w.ns, "p", "i=Assigned")
	if err := c.Update(w.Context(), must(azure.ParseResourceID(w.set)), nil, []azure.ResourceID{must(azure.ParseResourceID(idPrefix + "i"))}); err != nil {
		t.Fatal(err)
	}
	w.awaitCloud(c, w.set, "i")
}

func TestOneReplicaLeadsAndSaysSo(t *testing.T) {
	w, c := newWorld(t), &cloud{}
	elect := func(address string) func(*mic.Config) {
		return func(c *mic.Config) {
			c.Election = &mic.Election{Namespace: "default", Name: "aad-pod-identity-mic", Instance: "mic-" + address[len(address)-1:], Duration: 2 * time.Second, EndpointsRecord: true}
			c.HealthAddress = address
			c.Kubernetes.Impersonate = rest.ImpersonationConfig{} // the manifests grant the record only to who turns it on
		}
	}
	get := func(url string) string {
		r, err := http.Get(url)
		if err != nil {
			return err.Error()
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return fmt.Sprint(r.StatusCode, " ", string(b), err)
	}
	// An address that no other process uses, so that the port is free.
	host := fmt.Sprintf("127.%d.%d.%d:", 1+os.Getpid()>>16&63, os.Getpid()>>8&255, os.Getpid()&255)
	one, two := host+"8080", host+"8081"
	stop := w.run(c, elect(one))
	w.eventually(func() error { return differ("first", get("http://"+one+"/healthz"), "200 Active<nil>") })
	w.run(c, elect(two))
	w.eventually(func() error { return differ("second", get("http://"+two+"/readyz"), "200 <nil>") })
	if got := get("http://" + two + "/healthz"); got != "200 Not Active<nil>" {
		t.Errorf("second: %s", got)
	}
	// Scripts of Pod Identity v1 find the leader here.
	record := func() string {
		var o corev1.Endpoints //nolint:staticcheck // deprecated, and what v1 used
		if err := w.Get(w.Context(), types.NamespacedName{Namespace: "default", Name: "aad-pod-identity-mic"}, &o); err != nil {
			return err.Error()
		}
		var r struct {
			HolderIdentity       string `json:"holderIdentity"`
			LeaseDurationSeconds int    `json:"leaseDurationSeconds"`
			LeaderTransitions    int    `json:"leaderTransitions"`
		}
		err := json.Unmarshal([]byte(o.Annotations["control-plane.alpha.kubernetes.io/leader"]), &r)
		return fmt.Sprint(r, err)
	}
	w.eventually(func() error { return differ("record", record(), "{mic-0 2 0} <nil>") })
	stop()
	w.eventually(func() error { return differ("second", get("http://"+two+"/healthz"), "200 Active<nil>") })
	w.eventually(func() error { return differ("record", record(), "{mic-1 2 1} <nil>") })
	w.bind("i")
	w.pod(w.ns, "p", w.node, w.label("i"))
	w.await(w.ns, "p", "i=Assigned")
}
