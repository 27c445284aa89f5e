package webhook

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The token proxy's redirect needs more than the standards baseline and
// restricted give. Who asks for it there must learn which container it is, and
// without it the standards have no objection.
func TestPodSecurityNamesTheContainerThatItRefuses(t *testing.T) {
	started(t)
	kube, _ := clientset(t)
	yes, no := true, false
	for _, level := range []string{"baseline", "restricted"} {
		namespace := "pod-security-" + level
		if _, err := kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": level}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		makeAccount(t, kube, namespace, "app", map[string]string{"azure.workload.identity/client-id": testClient})
		pod := podOf("app", nil)
		pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
			RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
		dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
		if _, err := kube.CoreV1().Pods(namespace).Create(t.Context(), pod, dry); err != nil {
			t.Errorf("%s, without the proxy: %v", level, err)
		}
		pod.Annotations = map[string]string{"azure.workload.identity/inject-proxy-sidecar": "true"}
		_, err := kube.CoreV1().Pods(namespace).Create(t.Context(), pod, dry)
		if err == nil || !strings.Contains(err.Error(), `"azwi-proxy-init" must not include "NET_ADMIN"`) {
			t.Errorf("%s, with the proxy: %v", level, err)
		}
	}
}
