package binding_test

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
)

func TestWhichPodsABindingIsFor(t *testing.T) {
	type spec = v1.AzureIdentityBindingSpec
	app := func(v string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": v}}
	}
	expr := func(op metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: op, Values: values}}}
	}
	for _, c := range []struct {
		name   string
		spec   spec
		pod    string // its namespace; it has the labels app=x and aadpodidbinding=l and runs as sa
		reason binding.Reason
	}{
		{"the label alone", spec{Selector: "l"}, "z", ""},
		{"a binding without any criterion is for nobody", spec{}, "a", binding.NoBinding},
		{"a podSelector needs no label aadpodidbinding", spec{PodSelector: app("x")}, "a", ""},
		{"a podSelector that does not match", spec{PodSelector: app("y")}, "a", binding.NoBinding},
		{"an empty podSelector is for all pods of the namespace", spec{PodSelector: &metav1.LabelSelector{}}, "a", ""},
		{"a podSelector is for its namespace only", spec{PodSelector: app("x")}, "z", binding.NoBinding},
		{"In", spec{PodSelector: expr(metav1.LabelSelectorOpIn, "w", "x")}, "a", ""},
		{"NotIn", spec{PodSelector: expr(metav1.LabelSelectorOpNotIn, "x")}, "a", binding.NoBinding},
		{"Exists", spec{PodSelector: expr(metav1.LabelSelectorOpExists)}, "a", ""},
		{"DoesNotExist", spec{PodSelector: expr(metav1.LabelSelectorOpDoesNotExist)}, "a", binding.NoBinding},
		{"an operator that does not exist matches nobody and is told", spec{PodSelector: expr("Like", "x")}, "a", binding.InvalidSelector},
		{"In without values matches nobody and is told", spec{PodSelector: expr(metav1.LabelSelectorOpIn)}, "a", binding.InvalidSelector},
		{"a service account needs no label", spec{ServiceAccountName: "sa"}, "a", ""},
		{"one of several service accounts", spec{ServiceAccountNames: []string{"sb", "sa"}}, "a", ""},
		{"the name and the names together", spec{ServiceAccountName: "sb", ServiceAccountNames: []string{"sa"}}, "a", ""},
		{"another service account", spec{ServiceAccountName: "sb"}, "a", binding.NoBinding},
		{"a service account of that name in another namespace is another one", spec{ServiceAccountName: "sa"}, "z", binding.NoBinding},
		{"label and service account", spec{Selector: "l", ServiceAccountName: "sa"}, "a", ""},
		{"the label alone grants nothing where a service account is asked for", spec{Selector: "l", ServiceAccountName: "sb"}, "a", binding.OtherServiceAccount},
		{"a name that is empty is nobody's", spec{Selector: "l", ServiceAccountNames: []string{""}}, "a", binding.OtherServiceAccount},
		{"the label in another namespace grants nothing where a service account is asked for", spec{Selector: "l", ServiceAccountName: "sa"}, "z", binding.OtherNamespace},
		{"the label alone grants nothing where a podSelector is given", spec{Selector: "l", PodSelector: app("y")}, "a", binding.OtherLabels},
		{"another label", spec{Selector: "m", PodSelector: app("x"), ServiceAccountName: "sa"}, "a", binding.NoBinding},
		{"all three", spec{Selector: "l", PodSelector: app("x"), ServiceAccountName: "sa"}, "a", ""},
		{"podSelector without the service account", spec{PodSelector: app("x"), ServiceAccountName: "sb"}, "a", binding.OtherServiceAccount},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pod(c.pod+"/p", "l")
			p.ServiceAccount = "sa"
			b := bind("a/b", "", "i")
			b.Spec = c.spec
			b.Spec.AzureIdentity = "i"
			if got := binding.Matches(b, p); got != (c.reason == "") {
				t.Errorf("Matches is %v", got)
			}
			w := world(ids{identity("a/i")}, bindings{b})
			w.Managed = true
			_, refusal := binding.Candidates(p, w, time.Unix(0, 0))
			switch {
			case refusal == nil && c.reason != "":
				t.Errorf("granted, want %s", c.reason)
			case refusal != nil && refusal.Reason != c.reason:
				t.Errorf("got %s: %s", refusal.Reason, refusal.Text)
			}
			keys := binding.Keys(b)
			shared := slices.ContainsFunc(binding.PodKeys(p), func(k string) bool { return slices.Contains(keys, k) })
			if meant := refusal == nil || refusal.Reason != binding.NoBinding; meant && !shared {
				t.Errorf("an index would not find it: %q and %q", keys, binding.PodKeys(p))
			}
		})
	}
}

// FuzzPodSelector holds the matching to that of Kubernetes.
func FuzzPodSelector(f *testing.F) {
	f.Add("app", "x", "In", "x", true)
	f.Add("app", "x", "NotIn", "y", true)
	f.Add("app", "", "DoesNotExist", "", false)
	f.Fuzz(func(t *testing.T, key, value, operator, wanted string, match bool) {
		s := &metav1.LabelSelector{}
		if match {
			s.MatchLabels = map[string]string{"app": wanted}
		}
		e := metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOperator(operator)}
		if wanted != "" {
			e.Values = []string{wanted, "x"}
		}
		s.MatchExpressions = []metav1.LabelSelectorRequirement{e}
		want, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			// Kubernetes also refuses labels that no pod can have.
			return
		}
		for _, have := range []map[string]string{nil, {"app": value}, {key: value}, {key: value, "app": wanted}} {
			b := bind("a/b", "", "i")
			b.Spec.PodSelector = s
			if got := binding.Matches(b, binding.Pod{Namespace: "a", Labels: have}); got != want.Matches(labels.Set(have)) {
				t.Fatalf("%s on %v: %v", metav1.FormatLabelSelector(s), have, got)
			}
		}
	})
}
