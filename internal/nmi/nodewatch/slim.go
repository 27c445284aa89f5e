package nodewatch

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
)

// slim keeps of an object what is read, before it enters a cache, and reads old
// spellings. A node agent holds the identities and bindings of the whole
// cluster: kubectl's copy of each in an annotation would be most of it.
func slim(obj any) (any, error) {
	o, ok := obj.(metav1.Object)
	if !ok {
		return obj, nil
	}
	behavior, marked := o.GetAnnotations()[v1.BehaviorAnnotation]
	meta := metav1.ObjectMeta{
		Name: o.GetName(), Namespace: o.GetNamespace(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(), Generation: o.GetGeneration(),
		DeletionTimestamp: o.GetDeletionTimestamp(),
	}
	if marked {
		meta.Annotations = map[string]string{v1.BehaviorAnnotation: behavior}
	}
	switch o := obj.(type) {
	case *v1.AzureIdentity:
		o.Normalize()
		o.TypeMeta, o.ObjectMeta, o.Status = metav1.TypeMeta{}, meta, v1.AzureIdentityStatus{}
		o.Spec.Metadata = metav1.ObjectMeta{}
		p, err := pack(o)
		return &packedIdentity{p}, err
	case *v1.AzureIdentityBinding:
		o.Normalize()
		o.TypeMeta, o.ObjectMeta, o.Status = metav1.TypeMeta{}, meta, v1.AzureIdentityBindingStatus{}
		o.Spec.Metadata = metav1.ObjectMeta{}
		p, err := pack(o)
		return &packedBinding{p, strings.Clone(o.Spec.AzureIdentity), strings.Clone(o.Spec.Selector)}, err
	case *v1.AzureAssignedIdentity:
		o.TypeMeta, o.ObjectMeta = metav1.TypeMeta{}, meta
		o.Spec.AzureBindingRef, o.Spec.Metadata = nil, metav1.ObjectMeta{}
		if ref := o.Spec.AzureIdentityRef; ref != nil {
			o.Spec.AzureIdentityRef = &v1.AzureIdentity{ObjectMeta: metav1.ObjectMeta{Name: ref.Name, Namespace: ref.Namespace}, Spec: ref.Spec}
		}
	case *v1.AzurePodIdentityException:
		o.Normalize()
		o.TypeMeta, o.ObjectMeta = metav1.TypeMeta{}, meta
	case *lanyard.AccessRequest:
		meta.CreationTimestamp = o.CreationTimestamp
		o.TypeMeta, o.ObjectMeta = metav1.TypeMeta{}, meta
	case *corev1.Pod:
		meta.Labels, meta.CreationTimestamp = o.Labels, o.CreationTimestamp
		meta.Annotations = nil
		status := corev1.PodStatus{Phase: o.Status.Phase, PodIPs: o.Status.PodIPs, StartTime: o.Status.StartTime}
		status.Conditions = sandboxConditions(o.Status.Conditions)
		status.InitContainerStatuses, status.ContainerStatuses = starts(o.Status.InitContainerStatuses), starts(o.Status.ContainerStatuses)
		o.TypeMeta, o.ObjectMeta = metav1.TypeMeta{}, meta
		o.Spec = corev1.PodSpec{NodeName: o.Spec.NodeName, ServiceAccountName: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork}
		o.Status = status
	}
	return obj, nil
}

func entryOf(p *corev1.Pod) *entry {
	e := &entry{
		pod: binding.Pod{
			Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName,
			ServiceAccount: p.Spec.ServiceAccountName, Labels: p.Labels,
		},
		hostNetwork: p.Spec.HostNetwork,
		ended:       p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if p.DeletionTimestamp != nil {
		e.ends = p.DeletionTimestamp.Time
	}
	if e.hostNetwork || e.ended {
		return e
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			e.addresses = append(e.addresses, a.Unmap())
		}
	}
	return e
}
