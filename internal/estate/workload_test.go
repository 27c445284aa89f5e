package estate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
)

// Every kind of pod that uses workload identity, on a real kubelet, with
// programs that know nothing of Lanyard; then everything fails in turn around them.
func TestWorkloadIdentityOfRealPodsSurvivesFaults(t *testing.T) {
	s := newShop(t)
	for _, f := range []struct {
		name string
		test func(*testing.T, *shop)
	}{
		{"every kind of pod reads its secret", realPods},
		{"the webhook is down during a rollout", webhookDown},
		{"the webhook's certificate is lost", certificatesFail},
		{"the API server restarts", apiServerRestarts},
		{"Azure and the webhook fail at the same time", func(t *testing.T, s *shop) {
			t.Run("Resource Manager throttles for long, and people change things in Azure", func(t *testing.T) {
				t.Parallel()
				managerThrottles(t, s)
				handsInAzure(t, s)
			})
			t.Run("the webhook is down and pods are admitted nevertheless", func(t *testing.T) {
				t.Parallel()
				webhookIgnored(t, s)
			})
		}},
	} {
		began := time.Now()
		t.Run(f.name, func(t *testing.T) { f.test(t, s) })
		t.Logf("%s: %.1f s", f.name, time.Since(began).Seconds())
		if t.Failed() {
			t.Fatal("what follows would prove nothing")
		}
	}
	must(t, s.readAll(t.Context()))
	uninterrupted(t, s.since, time.Now(), s.steady)
	s.judge(t)
}

// A kind of pod, and which identity each container is; "" is none.
type kind struct {
	pod  *corev1.Pod
	want map[string]string
}

// kinds are the pods that are made at once.
func (s *shop) kinds() []kind {
	main := map[string]string{"main": "red"}
	both := map[string]string{"first": "red", "main": "red"}
	native := corev1.ContainerRestartPolicyAlways
	user := func(id int64) *int64 { return &id }

	initSDK := labelled("init-sdk", "red", s.sdk("main"))
	initSDK.Spec.InitContainers = []corev1.Container{s.sdk("first")}

	initIMDS := proxied(labelled("init-imds", "red", s.imds("main")))
	initIMDS.Spec.InitContainers = []corev1.Container{s.imds("first")}

	sidecar := proxied(labelled("own-sidecar", "red", s.imds("main")))
	sidecar.Spec.InitContainers = []corev1.Container{s.sdk("first", "--stay")}
	sidecar.Spec.InitContainers[0].RestartPolicy = &native

	two := labelled("two-identities", "red", s.sdk("main"), s.sdk("second"))
	two.Spec.Containers[1].Env = []corev1.EnvVar{{Name: workloadidentity.EnvClientID, Value: s.identities["green"].ClientID}}

	twoIMDS := proxied(labelled("two-identities-imds", "red", s.imds("main"),
		s.imds("second", "--url=http://"+hostIMDS+pathOfPods+"?client_id="+s.identities["green"].ClientID)))

	as1000 := proxied(labelled("user-1000", "red", s.imds("main")))
	as1000.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: user(1000), RunAsNonRoot: new(true)}

	// A program that runs as the proxy's own user passes the redirect: it must not get the node's identity.
	as1501 := proxied(labelled("user-1501", "red", s.imds("main", "--wait=0s")))
	as1501.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: user(workloadidentity.ProxyUID)}

	all := []kind{
		{labelled("sdk", "red", s.sdk("main")), main},
		{initSDK, both},
		{initIMDS, both},
		{sidecar, both},
		{two, map[string]string{"main": "red", "second": "green"}},
		{twoIMDS, map[string]string{"main": "red", "second": "green"}},
		{strict(labelled("restricted", "red", s.sdk("main"))), main},
		{as1000, main},
		{as1501, map[string]string{"main": ""}},
	}
	for i := range many {
		name := fmt.Sprintf("many-%d", i)
		all = append(all, kind{labelled(name, name, s.sdk("main")), map[string]string{"main": "blue"}})
	}
	return all
}

// strict makes a pod one that the strictest pod security admits.
func strict(p *corev1.Pod) *corev1.Pod {
	p.Namespace = restricted
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
	}
	return p
}

func realPods(t *testing.T, s *shop) {
	from := time.Now()
	before := s.counted(t, webhookNS, "8095", `azwi_mutation_request_count{decision="mutated"}`)
	kinds := s.kinds()
	for _, k := range kinds {
		must(t, s.Objects.Create(t.Context(), k.pod))
	}
	job := proxied(labelled("", "red", s.imds("main")))
	must(t, s.Objects.Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "job"},
		Spec: batchv1.JobSpec{BackoffLimit: new(int32), Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: job.Labels, Annotations: job.Annotations}, Spec: job.Spec,
		}},
	}))
	until(t, 120*time.Second, "every pod has ended", func(ctx context.Context) error {
		var waiting []error
		for _, k := range kinds {
			if err := s.Objects.Get(ctx, client.ObjectKeyFromObject(k.pod), k.pod); err != nil {
				return err
			}
			if p := k.pod.Status.Phase; p != corev1.PodSucceeded && p != corev1.PodFailed {
				waiting = append(waiting, fmt.Errorf("%s is %s: %+v", k.pod.Name, p, k.pod.Status.InitContainerStatuses))
			}
		}
		return errors.Join(waiting...)
	})
	for _, k := range kinds {
		for container, identity := range k.want {
			if identity == "" {
				r, err := s.report(t.Context(), k.pod, container)
				if err != nil || r.OK || r.Identity.ClientID != "" || r.Status < 400 {
					t.Errorf("%s should be refused: %+v, %v", k.pod.Name, r, err)
				}
				continue
			}
			if err := s.is(t.Context(), k.pod, container, identity); err != nil {
				t.Error(err)
			}
		}
		if !mutated(k.pod) {
			t.Errorf("%s was not mutated", k.pod.Name)
		}
	}
	s.jobEnds(t)
	s.refusals(t)

	// What the records say of it.
	if after := s.counted(t, webhookNS, "8095", `azwi_mutation_request_count{decision="mutated"}`); after-before < float64(len(kinds)+1) {
		t.Errorf("the webhook has counted %v pods of %d", after-before, len(kinds)+1)
	}
	for identity, least := range map[string]int{"red": 9, "green": 2, "blue": many} {
		asked := s.asked(azure.HostLogin, from)
		asked = slices.DeleteFunc(asked, func(e journal.Entry) bool { return e.Client != s.identities[identity].ClientID || e.Status != 200 })
		if len(asked) < least {
			t.Errorf("Entra has given %d tokens to %s, not %d", len(asked), identity, least)
		}
	}
	for _, k := range kinds {
		must(t, s.Objects.Delete(t.Context(), k.pod))
	}
}

// jobEnds: the sidecar does not keep the Job from being done, and ends well.
func (s *shop) jobEnds(t *testing.T) {
	until(t, 30*time.Second, "the Job is complete", func(ctx context.Context) error {
		var j batchv1.Job
		if err := s.Objects.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "job"}, &j); err != nil {
			return err
		}
		if j.Status.Succeeded != 1 {
			return fmt.Errorf("%+v", j.Status)
		}
		return nil
	})
	var pods corev1.PodList
	must(t, s.Objects.List(t.Context(), &pods, client.InNamespace(namespace), client.MatchingLabels{batchv1.JobNameLabel: "job"}))
	if len(pods.Items) != 1 {
		t.Fatalf("the Job has had %d pods", len(pods.Items))
	}
	p := &pods.Items[0]
	if err := s.is(t.Context(), p, "main", "red"); err != nil {
		t.Error(err)
	}
	i := slices.IndexFunc(p.Status.InitContainerStatuses, func(c corev1.ContainerStatus) bool { return c.Name == workloadidentity.ProxyContainer })
	if i < 0 || p.Status.InitContainerStatuses[i].State.Terminated == nil || p.Status.InitContainerStatuses[i].State.Terminated.ExitCode != 0 {
		t.Errorf("the proxy should have ended well as a sidecar of Kubernetes: %+v", p.Status.InitContainerStatuses)
	}
}

// refusals: what cannot work is refused or warned about, in words that help.
func (s *shop) refusals(t *testing.T) {
	if !slices.ContainsFunc(s.warned(), func(w string) bool { return strings.Contains(w, "runs as user 1501") }) {
		t.Errorf("nobody warns that a program runs as the proxy's user: %q", s.warned())
	}
	err := s.Objects.Create(t.Context(), proxied(strict(labelled("restricted-proxy", "red", s.imds("main")))))
	if err == nil || !strings.Contains(err.Error(), workloadidentity.ProxyInitContainer) || !strings.Contains(err.Error(), "NET_ADMIN") {
		t.Errorf("the strictest pod security and the proxy exclude each other: %v", err)
	}
}

func (s *shop) warned() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.warnings)
}

// counted is the sum of a metric over the pods of a namespace.
func (s *shop) counted(t *testing.T, ns, port, metric string) (sum float64) {
	t.Helper()
	until(t, 20*time.Second, metric+" is counted", func(ctx context.Context) error {
		sum = 0
		pods, err := s.Lab.Client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			if p.DeletionTimestamp != nil {
				continue
			}
			text, err := s.Lab.Client.CoreV1().Pods(ns).ProxyGet("http", p.Name, port, "/metrics", nil).DoRaw(ctx)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				var n float64
				if rest, ok := strings.CutPrefix(line, metric+" "); ok {
					if _, err := fmt.Sscan(rest, &n); err != nil {
						return err
					}
					sum += n
				}
			}
		}
		return nil
	})
	return sum
}
