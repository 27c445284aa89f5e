package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A Ref names an object.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

func compareRefs(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
}

// RefOf names an object.
func RefOf(o *unstructured.Unstructured) Ref {
	return Ref{Kind: o.GetKind(), Namespace: o.GetNamespace(), Name: o.GetName()}
}

// A Kind is a kind of object that has pods, or that migration touches.
type Kind struct {
	Kind     string
	Resource schema.GroupVersionResource
	names    []string // how people call it, besides Kind and Resource
	template []string // where the pod template is; nil means that the object is a pod
}

func core(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Version: "v1", Resource: resource}
}

func apps(resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: resource}
}

// Kinds are the kinds that have pods.
func Kinds() []Kind {
	batch := func(resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: resource}
	}
	template := []string{"spec", "template"}
	return []Kind{
		{"Deployment", apps("deployments"), []string{"deploy"}, template},
		{"StatefulSet", apps("statefulsets"), []string{"sts"}, template},
		{"DaemonSet", apps("daemonsets"), []string{"ds"}, template},
		{"CronJob", batch("cronjobs"), []string{"cj"}, []string{"spec", "jobTemplate", "spec", "template"}},
		{"Job", batch("jobs"), nil, template},
		{"ReplicaSet", apps("replicasets"), []string{"rs"}, template},
		{"ReplicationController", core("replicationcontrollers"), []string{"rc"}, template},
		{"Pod", core("pods"), []string{"po"}, nil},
	}
}

// ResourceOf returns where objects of a kind are in the API: those of Kinds,
// service accounts and role bindings.
func ResourceOf(kind string) (schema.GroupVersionResource, bool) {
	for _, k := range Kinds() {
		if k.Kind == kind {
			return k.Resource, true
		}
	}
	rbac := schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1"}
	switch kind {
	case KindServiceAccount:
		return core("serviceaccounts"), true
	case KindRoleBinding:
		return rbac.GroupVersion().WithResource("rolebindings"), true
	case KindClusterRoleBinding:
		return rbac.GroupVersion().WithResource("clusterrolebindings"), true
	case KindFederatedIdentity:
		return schema.GroupVersionResource{Group: "lanyard.id", Version: "v1alpha1", Resource: "federatedidentities"}, true
	}
	return schema.GroupVersionResource{}, false
}

// Kinds of objects, besides workloads, that a plan makes or changes.
const (
	KindServiceAccount     = "ServiceAccount"
	KindRoleBinding        = "RoleBinding"
	KindClusterRoleBinding = "ClusterRoleBinding"
	KindFederatedIdentity  = "FederatedIdentity"
)

// ParseWorkload reads KIND/NAME as kubectl writes it, such as deployment/api or
// sts/db.
func ParseWorkload(text, namespace string) (Ref, error) {
	kind, name, ok := strings.Cut(text, "/")
	if !ok || kind == "" || name == "" || strings.Contains(name, "/") {
		return Ref{}, fmt.Errorf("%q is no workload: write KIND/NAME, such as deployment/api", text)
	}
	var known []string
	for _, k := range Kinds() {
		singular := strings.ToLower(k.Kind)
		known = append(known, singular)
		switch kind, _, _ := strings.Cut(strings.ToLower(kind), "."); {
		case kind == singular, kind == k.Resource.Resource, slices.Contains(k.names, kind):
			return Ref{Kind: k.Kind, Namespace: namespace, Name: name}, nil
		}
	}
	return Ref{}, fmt.Errorf("%q is no kind of workload: use %s", kind, strings.Join(known, ", "))
}

// A Template is what a workload's pods are made from, or a pod itself: metadata
// and spec. Changes go to the object that it was taken from.
type Template struct{ pod map[string]any }

// TemplateOf returns the pod template of a workload. It is false for an object of
// another kind and for one without a template.
func TemplateOf(o *unstructured.Unstructured) (Template, bool) {
	for _, k := range Kinds() {
		if k.Kind != o.GetKind() || k.Resource.GroupVersion().String() != o.GetAPIVersion() {
			continue
		}
		at := o.Object
		for _, step := range k.template {
			next, ok := at[step].(map[string]any)
			if !ok {
				return Template{}, false
			}
			at = next
		}
		_, ok := at["spec"].(map[string]any)
		return Template{at}, ok
	}
	return Template{}, false
}

func (t Template) strings(field string) map[string]string {
	m, _, _ := unstructured.NestedStringMap(t.pod, "metadata", field)
	return m
}

// Labels of the pods.
func (t Template) Labels() map[string]string { return t.strings("labels") }

// Annotations of the pods.
func (t Template) Annotations() map[string]string { return t.strings("annotations") }

func (t Template) text(field string) string {
	s, _, _ := unstructured.NestedString(t.pod, "spec", field)
	return s
}

// ServiceAccount is the one that the pods run as.
func (t Template) ServiceAccount() string {
	return cmp.Or(t.text("serviceAccountName"), t.text("serviceAccount"), "default")
}

// HostNetwork reports whether the pods have the node's network.
func (t Template) HostNetwork() bool {
	b, _, _ := unstructured.NestedBool(t.pod, "spec", "hostNetwork")
	return b
}

// Windows reports whether the pods ask for a Windows node.
func (t Template) Windows() bool {
	name, _, _ := unstructured.NestedString(t.pod, "spec", "os", "name")
	node, _, _ := unstructured.NestedString(t.pod, "spec", "nodeSelector", "kubernetes.io/os")
	return name == "windows" || node == "windows"
}

// ports are those that the containers declare.
func (t Template) ports() map[int64]bool {
	used := map[int64]bool{}
	for _, field := range []string{"containers", "initContainers"} {
		containers, _, _ := unstructured.NestedSlice(t.pod, "spec", field)
		for _, c := range containers {
			c, _ := c.(map[string]any)
			ports, _ := c["ports"].([]any)
			for _, p := range ports {
				p, _ := p.(map[string]any)
				if n, ok := p["containerPort"].(int64); ok {
					used[n] = true
				}
			}
		}
	}
	return used
}

func (t Template) set(field, key, value string) {
	m := t.strings(field)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	metadata, ok := t.pod["metadata"].(map[string]any)
	if !ok {
		metadata = map[string]any{}
		t.pod["metadata"] = metadata
	}
	raw := make(map[string]any, len(m))
	for k, v := range m {
		raw[k] = v
	}
	metadata[field] = raw
}

// SetLabel sets a label of the pods.
func (t Template) SetLabel(key, value string) { t.set("labels", key, value) }

// SetAnnotation sets an annotation of the pods.
func (t Template) SetAnnotation(key, value string) { t.set("annotations", key, value) }

// RemoveLabel removes a label of the pods.
func (t Template) RemoveLabel(key string) {
	unstructured.RemoveNestedField(t.pod, "metadata", "labels", key)
}

// SetServiceAccount sets whom the pods run as, in the field's present and in its
// older spelling: the API server keeps both alike.
func (t Template) SetServiceAccount(name string) {
	spec, _ := t.pod["spec"].(map[string]any)
	spec["serviceAccountName"] = name
	spec["serviceAccount"] = name
}

// controller is the owner that keeps an object as it is, or nil.
func controller(o *unstructured.Unstructured) *metav1.OwnerReference {
	for _, r := range o.GetOwnerReferences() {
		if r.Controller != nil && *r.Controller {
			return &r
		}
	}
	return nil
}

// Root returns the workload that an object belongs to, which may be itself, by
// following owners within all. owner is the one that is not among all: an
// operator's object, or one that is gone.
func Root(o *unstructured.Unstructured, all map[Ref]*unstructured.Unstructured) (root *unstructured.Unstructured, owner *metav1.OwnerReference) {
	for range 8 { // Pod, Job, CronJob: three at most
		r := controller(o)
		if r == nil {
			return o, nil
		}
		next := all[Ref{r.Kind, o.GetNamespace(), r.Name}]
		if next == nil || next.GetUID() != r.UID {
			return o, r
		}
		o = next
	}
	return o, controller(o)
}

func index(objects []*unstructured.Unstructured) map[Ref]*unstructured.Unstructured {
	all := make(map[Ref]*unstructured.Unstructured, len(objects))
	for _, o := range objects {
		all[RefOf(o)] = o
	}
	return all
}

// Spec is that of the pods; it must not be modified.
func (t Template) Spec() map[string]any {
	spec, _ := t.pod["spec"].(map[string]any)
	return spec
}
