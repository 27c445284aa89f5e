package binding

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

// Matches reports whether a binding is for a pod: every criterion that it gives
// is met, and it gives at least one. A binding with podSelector or service
// accounts is for pods of its own namespace only, because a label or a name of
// another namespace proves nothing.
func Matches(b *v1.AzureIdentityBinding, pod Pod) bool {
	reason, _ := match(b, &pod)
	return reason == ""
}

// other is the reason of bindings that are not meant for the pod at all.
const other Reason = "-"

// match returns no reason if the binding is for the pod, other if nothing
// suggests that it should be, and else what keeps them apart.
func match(b *v1.AzureIdentityBinding, pod *Pod) (Reason, error) {
	s := &b.Spec
	if s.Selector != "" && s.Selector != pod.Labels[v1.BindingLabel] || !b.DeletionTimestamp.IsZero() {
		return other, nil
	}
	accounts := s.ServiceAccountName != "" || len(s.ServiceAccountNames) > 0
	if s.PodSelector == nil && !accounts {
		if s.Selector == "" {
			return other, nil
		}
		return "", nil
	}
	meant := s.Selector != ""
	if b.Namespace != pod.Namespace {
		return unless(meant, OtherNamespace), nil
	}
	if s.PodSelector != nil {
		ok, err := selects(s.PodSelector, pod.Labels)
		if err != nil {
			return InvalidSelector, err
		}
		if !ok {
			return unless(meant, OtherLabels), nil
		}
		meant = true
	}
	if accounts && (pod.ServiceAccount == "" || s.ServiceAccountName != pod.ServiceAccount && !slices.Contains(s.ServiceAccountNames, pod.ServiceAccount)) {
		return unless(meant, OtherServiceAccount), nil
	}
	return "", nil
}

func unless(meant bool, r Reason) Reason {
	if meant {
		return r
	}
	return other
}

// selects is what metav1.LabelSelectorAsSelector(s).Matches says, without
// building the selector for each request.
func selects(s *metav1.LabelSelector, labels map[string]string) (bool, error) {
	for i := range s.MatchExpressions { // an error shows whatever the labels are
		e := &s.MatchExpressions[i]
		if values := len(e.Values) > 0; e.Key == "" || values != (e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn) ||
			!values && e.Operator != metav1.LabelSelectorOpExists && e.Operator != metav1.LabelSelectorOpDoesNotExist {
			return false, fmt.Errorf("spec.podSelector.matchExpressions[%d]: operator %s with key %s and %d values: use In or NotIn with values, Exists or DoesNotExist without", i, quote(string(e.Operator)), quote(e.Key), len(e.Values))
		}
	}
	for k, v := range s.MatchLabels {
		if have, ok := labels[k]; !ok || have != v {
			return false, nil
		}
	}
	for i := range s.MatchExpressions {
		e := &s.MatchExpressions[i]
		have, ok := labels[e.Key]
		in := ok && slices.Contains(e.Values, have)
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			ok = in
		case metav1.LabelSelectorOpNotIn:
			ok = !in
		case metav1.LabelSelectorOpDoesNotExist:
			ok = !ok
		}
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

// Keys returns the keys under which an index finds a binding; PodKeys returns
// those under which it is looked for. A binding that matches a pod, or is a
// Problem of it, shares a key with it.
//
//	selector=VALUE                a binding with selector
//	namespace=NAMESPACE           one without, but with podSelector
//	account=NAMESPACE/ACCOUNT     one with service accounts alone
func Keys(b *v1.AzureIdentityBinding) []string {
	switch s := &b.Spec; {
	case s.Selector != "":
		return []string{"selector=" + s.Selector}
	case s.PodSelector != nil:
		return []string{"namespace=" + b.Namespace}
	default:
		var keys []string
		for _, name := range append([]string{s.ServiceAccountName}, s.ServiceAccountNames...) {
			if key := "account=" + b.Namespace + "/" + name; name != "" && !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
		return keys
	}
}

// PodKeys returns the keys of a pod, see Keys.
func PodKeys(pod Pod) []string {
	keys := make([]string, 0, 3)
	if label := pod.Labels[v1.BindingLabel]; label != "" {
		keys = append(keys, "selector="+label)
	}
	keys = append(keys, "namespace="+pod.Namespace)
	if pod.ServiceAccount != "" {
		keys = append(keys, "account="+pod.Namespace+"/"+pod.ServiceAccount)
	}
	return keys
}
