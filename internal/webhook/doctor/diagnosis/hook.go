package diagnosis

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// A Hook is what the MutatingWebhookConfiguration says about the webhook: which
// pods the API server asks it about. The zero Hook is a configuration that is
// missing.
type Hook struct {
	Found       bool
	Asked       bool // it has a rule for new pods
	Trusted     bool // it has a caBundle
	Conditional bool // it has matchConditions, which only the API server can evaluate

	namespaces, objects labels.Selector // nil means everything
}

// ParseHook reads the webhook of that name from a MutatingWebhookConfiguration.
func ParseHook(raw []byte, name string) (Hook, error) {
	var o struct {
		Webhooks []struct {
			Name                              string
			ClientConfig                      struct{ CABundle []byte }
			NamespaceSelector, ObjectSelector *metav1.LabelSelector
			MatchConditions                   []json.RawMessage
			Rules                             []rule
		}
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return Hook{}, fmt.Errorf("decoding the webhook configuration: %w", err)
	}
	for _, w := range o.Webhooks {
		if w.Name != name {
			continue
		}
		h := Hook{Found: true, Trusted: len(w.ClientConfig.CABundle) > 0, Conditional: len(w.MatchConditions) > 0, Asked: slices.ContainsFunc(w.Rules, rule.newPods)}
		var err error
		if h.namespaces, err = selector(w.NamespaceSelector); err != nil {
			return Hook{}, fmt.Errorf("namespaceSelector of webhook %s: %w", name, err)
		}
		if h.objects, err = selector(w.ObjectSelector); err != nil {
			return Hook{}, fmt.Errorf("objectSelector of webhook %s: %w", name, err)
		}
		return h, nil
	}
	return Hook{}, nil
}

type rule struct{ APIGroups, APIVersions, Operations, Resources []string }

func (r rule) newPods() bool {
	return either(r.APIGroups, "", "*") && either(r.APIVersions, "v1", "*") && either(r.Operations, "CREATE", "*") && either(r.Resources, "pods", "*", "*/*")
}

func either(have []string, want ...string) bool {
	return slices.ContainsFunc(want, func(w string) bool { return slices.Contains(have, w) })
}

// selector is a selector as admission means it: none selects everything.
func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return nil, nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// Asks reports whether the labels of a pod's namespace are needed to say if
// the webhook is asked. The name is a label of every namespace.
func (h Hook) Asks() bool {
	if h.namespaces == nil {
		return false
	}
	requirements, _ := h.namespaces.Requirements()
	for _, r := range requirements {
		if r.Key() != corev1.LabelMetadataName {
			return true
		}
	}
	return false
}

// selects reports whether the API server asks the webhook about such a pod.
func (h Hook) selects(namespace map[string]string, pod map[string]string) bool {
	return (h.namespaces == nil || h.namespaces.Matches(labels.Set(namespace))) && (h.objects == nil || h.objects.Matches(labels.Set(pod)))
}
