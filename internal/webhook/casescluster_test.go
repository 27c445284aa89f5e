package webhook

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// current answers with the handler of the case that is being asked.
type current struct{ atomic.Pointer[Handler] }

func (c *current) ServeHTTP(w http.ResponseWriter, r *http.Request) { c.Load().ServeHTTP(w, r) }

// The API server asks the webhook by the configuration that users install, and
// what comes out of it is what the case table says: no field is lost or moved
// on the way, and what the webhook writes is valid.
func TestTheAPIServerAgreesWithTheCases(t *testing.T) {
	install(t, "https://127.0.0.1:1")
	r := newReplica(t, account(t))
	base := r.server.Admission.(*Handler)
	handler := &current{}
	handler.Store(base)
	r.server.Admission = handler
	redirect(t, r.url())
	r.run(t)
	labtest.Eventually(t, t.Context(), r.ready)
	kube, _ := clientset(t)
	asked := 0
	for _, c := range readCases(t) {
		if c.files["offline"] != "" || c.account == nil || c.first != nil {
			continue
		}
		asked++
		t.Run(c.name, func(t *testing.T) {
			h := *base
			h.Config, h.NativeSidecars = c.config, func() bool { return c.config.NativeSidecars }
			handler.Store(&h)
			_, err := kube.CoreV1().ServiceAccounts("default").Create(t.Context(), &corev1.ServiceAccount{
				ObjectMeta: metav1.ObjectMeta{Name: c.account.Name, Labels: c.account.Labels, Annotations: c.account.Annotations},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := kube.CoreV1().ServiceAccounts("default").Delete(context.WithoutCancel(t.Context()), c.account.Name, metav1.DeleteOptions{}); err != nil {
					t.Error(err)
				}
			}()
			c.create(t, r)
		})
	}
	if asked < 50 {
		t.Errorf("only %d cases were asked", asked)
	}
}

// create creates the case's pod as a dry run and compares.
func (c reviewCase) create(t *testing.T, r *replica) {
	t.Helper()
	// A cached account of the case before would be out of date for a moment.
	labtest.Eventually(t, t.Context(), func() error {
		got, err := r.accounts.ServiceAccount(t.Context(), "default", c.account.Name)
		if err != nil {
			return err
		}
		want, err := c.ServiceAccount(t.Context(), "default", c.account.Name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(mutation.ServiceAccount{}, "Namespace", "Name")); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	told := &warningLog{}
	config := cluster.Config(t)
	config.WarningHandler, config.WarningHandlerWithContext = told, told
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(c.pod(t), &o.Object); err != nil {
		t.Fatal(err)
	}
	made, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "pods"}).Namespace("default").
		Create(t.Context(), o, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if denial := c.files["denial"]; denial != "" {
		code, text, _ := strings.Cut(strings.TrimSpace(denial), " ")
		want := `admission webhook "mutation.azure-workload-identity.io" denied the request: ` + text
		if err == nil || err.Error() != want || code != "400" || !apierrors.IsBadRequest(err) {
			t.Errorf("error %v\nwant  %s", err, want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if missing := strings.TrimSpace(c.files["warnings"]); !strings.Contains(told.String(), missing) {
		t.Errorf("the API server tells\n%s\nwant\n%s", told, missing)
	}
	expected := c.files["mutated.yaml"]
	if _, ok := c.files["unchanged"]; ok {
		expected = c.files["pod.yaml"]
	}
	var want map[string]any
	if err := yaml.Unmarshal([]byte(expected), &want); err != nil {
		t.Fatal(err)
	}
	// The API server has put its own token volume, whose name is random, into
	// the pod before it asked, and takes null and "" for absent.
	got := made.Object
	if missing := lacks("", withoutEmpty(want), withoutEmpty(withoutAPIAccess(got))); missing != "" {
		t.Error(missing)
	}
	if diff := cmp.Diff(names(want), names(got)); diff != "" {
		t.Errorf("containers (-want +got)\n%s", diff)
	}
}

func withoutEmpty(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if v[k] = withoutEmpty(e); e == nil || e == "" {
				delete(v, k)
			}
		}
	case []any:
		for i := range v {
			v[i] = withoutEmpty(v[i])
		}
	}
	return v
}

// withoutAPIAccess removes the entries of the API server's own token volume.
func withoutAPIAccess(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = withoutAPIAccess(e)
		}
	case []any:
		kept := []any{}
		for _, e := range v {
			if o, _ := e.(map[string]any); o != nil {
				if name, _ := o["name"].(string); strings.HasPrefix(name, "kube-api-access-") {
					continue
				}
			}
			kept = append(kept, withoutAPIAccess(e))
		}
		return kept
	}
	return v
}

// names is the order of a pod's containers.
func names(pod map[string]any) []string {
	var out []string
	for _, group := range []string{"initContainers", "containers"} {
		list, _, _ := unstructured.NestedSlice(pod, "spec", group)
		for _, c := range list {
			out = append(out, group+"/"+c.(map[string]any)["name"].(string))
		}
	}
	return out
}
