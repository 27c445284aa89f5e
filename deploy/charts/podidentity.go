package charts

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// plainPodIdentity takes the objects of some components and names them as v1's
// plain manifests do.
func plainPodIdentity(objects []*unstructured.Unstructured, components []string) []*unstructured.Unstructured {
	var list []*unstructured.Unstructured
	for _, o := range objects {
		if component := componentOf(o); slices.Contains(components, component) {
			rename(o, component)
			list = append(list, o)
		}
	}
	return list
}

func componentOf(o *unstructured.Unstructured) string {
	if o.GetKind() == "AzurePodIdentityException" {
		return "exception"
	}
	return o.GetLabels()["app.kubernetes.io/component"]
}

// rename gives an object of the chart the name and labels that v1's plain
// manifests have.
func rename(o *unstructured.Unstructured, component string) {
	name := map[string]string{
		"ServiceAccount":            "aad-pod-id-" + component + "-service-account",
		"ClusterRole":               "aad-pod-id-" + component + "-role",
		"ClusterRoleBinding":        "aad-pod-id-" + component + "-binding",
		"Role":                      "aad-pod-id-" + strings.TrimPrefix(o.GetName(), "aad-pod-identity-"),
		"RoleBinding":               "aad-pod-id-" + strings.TrimPrefix(o.GetName(), "aad-pod-identity-"),
		"Deployment":                component,
		"DaemonSet":                 component,
		"AzurePodIdentityException": strings.Replace(o.GetName(), "mic", "mic-exception", 1),
	}
	labels := map[string]string{"component": component, "k8s-app": "aad-pod-id"}
	selector := map[string]any{"app": component, "component": component}
	switch {
	case o.GetKind() == "ClusterRoleBinding":
		labels = map[string]string{"k8s-app": name["ClusterRoleBinding"]}
	case component == "exception":
		labels = nil
		o.Object["spec"].(map[string]any)["podLabels"] = exceptionLabels(o)
	case component == "nmi":
		labels["tier"] = "node"
		selector = map[string]any{"component": component, "tier": "node"}
	}
	if n := name[o.GetKind()]; n != "" {
		o.SetName(n)
	}
	o.SetLabels(labels)
	if ref, ok := o.Object["roleRef"].(map[string]any); ok {
		if ref["kind"] == "ClusterRole" {
			ref["name"] = name["ClusterRole"]
		} else {
			ref["name"] = o.GetName()
		}
		for _, s := range o.Object["subjects"].([]any) {
			s.(map[string]any)["name"] = name["ServiceAccount"]
		}
	}
	relabel(o.Object["spec"], selector, name["ServiceAccount"])
}

// exceptionLabels are those of v1's plain manifests: without the chart's own.
func exceptionLabels(o *unstructured.Unstructured) map[string]any {
	labels, _, _ := unstructured.NestedMap(o.Object, "spec", "podLabels")
	delete(labels, "app.kubernetes.io/component")
	return labels
}

// relabel replaces every selector, the pods' labels and their service account.
func relabel(node any, selector map[string]any, account string) {
	switch n := node.(type) {
	case []any:
		for _, e := range n {
			relabel(e, selector, account)
		}
	case map[string]any:
		for key, value := range n {
			switch key {
			case "matchLabels", "labels":
				n[key] = selector
			case "serviceAccountName":
				n[key] = account
			default:
				relabel(value, selector, account)
			}
		}
	}
}
