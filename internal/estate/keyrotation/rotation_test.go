package keyrotation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/issuer/rotation"
)

const app = "shop"

// deploy makes a Deployment of pods that exchange their tokens all the time.
func (b *bed) deploy(t *testing.T, replicas int32, pod corev1.PodTemplateSpec) {
	t.Helper()
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels["app"] = app
	pod.Spec.ServiceAccountName, pod.Spec.TerminationGracePeriodSeconds = account, new(int64(10))
	pod.Spec.Containers[0].Name, pod.Spec.Containers[0].Image, pod.Spec.Containers[0].ImagePullPolicy = "main", "lanyard/workload:dev", corev1.PullIfNotPresent
	pod.Spec.Containers[0].Args = []string{"exchange", "--pause=200ms"}
	must(t, b.Objects.Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: app},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, Template: pod},
	}))
}

// mutated are pods that the webhook gives a token.
func mutated() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{workloadidentity.LabelUse: "true"}},
		Spec:       corev1.PodSpec{Containers: make([]corev1.Container, 1)},
	}
}

// untilExchanging waits until that many pods run, and each has exchanged tokens
// of a key since now. It returns their names.
func (b *bed) untilExchanging(t *testing.T, pods int, kid string) (names []string) {
	t.Helper()
	since := time.Now()
	until(t, 2*time.Minute, fmt.Sprintf("%d pods exchange tokens of the key %q", pods, kid), func(ctx context.Context) (err error) {
		if names, err = b.running(ctx); err != nil {
			return err
		}
		if len(names) != pods {
			return fmt.Errorf("there are the pods %v", names)
		}
		return b.exchanging(names, kid, since, 5)
	})
	return names
}

// The whole way, with pods on a kubelet: those of before go on with tokens of the
// old key, those of later have tokens of the new one, beside each other. The
// operator replaces the pods rather than wait for the end of their tokens.
func TestPodsKeepTheirAccessWhileTheKeyIsRotated(t *testing.T) {
	b := newBed(t, control.Settings{JWKSRefetch: fault.Duration(time.Second)})
	b.publishFirst(t)
	b.deploy(t, 3, mutated())
	old := b.untilExchanging(t, 3, "")

	s := b.rotateTo(t, rotation.Drain, "--cache-wait=2s", "--token-lifetime=1h")
	if got := b.restarted(); !slices.Equal(got, []string{string(rotation.Accept), string(rotation.Switch)}) {
		t.Errorf("the API server was restarted in the steps %v", got)
	}
	b.kubectl(t, "scale", "deployment", app, "--replicas=6")
	both := b.untilExchanging(t, 6, "")
	late := slices.DeleteFunc(slices.Clone(both), func(n string) bool { return slices.Contains(old, n) })
	since := time.Now()
	until(t, 20*time.Second, "tokens of both keys are good beside each other", func(context.Context) error {
		if err := b.exchanging(old, s.Old, since, 5); err != nil {
			return err
		}
		return b.exchanging(late, s.New, since, 5)
	})

	b.replace(t, "deployment/"+app)
	b.untilExchanging(t, 6, s.New)
	if s = b.rotate(t, "--cache-wait=2s", "--token-lifetime=1s"); s.Step != rotation.Done {
		t.Fatalf("the rotation is in step %s", s.Step)
	}
	b.forget()
	b.untilExchanging(t, 6, s.New)
	b.check(t)
	b.sound(t)
	if t.Failed() {
		t.Fatal("what follows would prove nothing")
	}
	t.Run("who retracts the old key before its tokens have ended is found out", b.hasty)
}

// hasty says that tokens live for a second, and replaces nothing.
func (b *bed) hasty(t *testing.T) {
	s := b.rotate(t, "--new", "--cache-wait=2s", "--token-lifetime=1s")
	if s.Step != rotation.Done {
		t.Fatalf("the rotation is in step %s", s.Step)
	}
	b.forget()
	var words []string
	until(t, patience, "exchanges fail", func(context.Context) error {
		var byPods, byCloud int
		if byPods, byCloud, words = b.failures(); byPods < 6 || byCloud < 6 {
			return fmt.Errorf("%d failures by the pods and %d by the cloud", byPods, byCloud)
		}
		return nil
	})
	for _, w := range words {
		if !strings.Contains(w, "AADSTS7000272") || !strings.Contains(w, s.Old) {
			t.Errorf("a failure: %s", w)
		}
	}
}
