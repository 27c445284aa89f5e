package charts_test

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/deploy/charts"
)

// Every object of every values file passes the API server's own validation,
// without an unknown field.
func TestTheAPIServerAcceptsEveryObject(t *testing.T) {
	w := newWorld(t, &fresh, "default")
	docs, err := deploy.CRDs()
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range docs {
		list, err := charts.Objects(string(doc))
		if err != nil {
			t.Fatal(err)
		}
		w.create(list[0].Object)
	}
	w.established()
	for _, namespace := range []string{"team-a", "team-b", "l", "azure-workload-identity-system"} {
		w.create(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	}
	each(t, func(t *testing.T, s subject) {
		t.Run("default", func(t *testing.T) { dryRun(t, w, objects(t, s.with(t, ""))) })
		for _, f := range s.valuesFiles(t) {
			t.Run(filepath.Base(f), func(t *testing.T) { dryRun(t, w, objects(t, s.with(t, string(read(t, f))))) })
		}
		manifests, err := charts.Plain(t.Context(), s.load(t))
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range manifests {
			t.Run(name, func(t *testing.T) { dryRun(t, w, parse(t, text)) })
		}
	})
}

func dryRun(t *testing.T, w *world, list []*unstructured.Unstructured) {
	t.Helper()
	strict := client.WithFieldValidation(w.objects, metav1.FieldValidationStrict)
	for _, o := range list {
		if o.GroupVersionKind().Group == "monitoring.coreos.com" {
			continue // kinds of the Prometheus operator, which is not here
		}
		if err := strict.Create(t.Context(), o, client.DryRunAll); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

// Flags that a program does not know end it: every values file must render
// arguments that it takes.
func TestTheProgramsKnowTheirArguments(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		releases := map[string]string{"default": ""}
		for _, f := range s.valuesFiles(t) {
			releases[filepath.Base(f)] = string(read(t, f))
		}
		for name, e := range s.effects {
			releases[name] = e.values
		}
		asked := map[string]bool{} // many releases have the same arguments
		for name, text := range releases {
			for _, c := range firstContainers(t, objects(t, s.with(t, text))) {
				line := c.Name + " " + strings.Join(c.Args, " ")
				executable := s.programs[c.Name]
				if executable == "" || asked[line] {
					continue
				}
				asked[line] = true
				if out, err := exec.CommandContext(t.Context(), program(t, executable), append(slices.Clone(c.Args), "--version")...).CombinedOutput(); err != nil {
					t.Errorf("%s: %s %q: %v\n%s", name, c.Name, c.Args, err, out)
				}
			}
		}
		if len(asked) < 10 {
			t.Errorf("only %d command lines were tried", len(asked))
		}
	})
}

// firstContainers are those of the workloads among the objects.
func firstContainers(t testing.TB, list []*unstructured.Unstructured) []corev1.Container {
	t.Helper()
	var containers []corev1.Container
	for _, o := range list {
		pod, found, err := unstructured.NestedMap(o.Object, "spec", "template", "spec")
		if err != nil || !found {
			continue
		}
		var spec corev1.PodSpec
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(pod, &spec); err != nil {
			t.Fatal(err)
		}
		containers = append(containers, spec.Containers[0])
	}
	return containers
}
