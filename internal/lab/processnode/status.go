package processnode

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// report tells the API server how the pod is.
func (p *pod) report(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock() // reports must arrive in the order in which things happened
	defer p.mu.Unlock()
	patch, err := json.Marshal(map[string]any{"status": p.status()})
	if err == nil {
		_, err = p.node.Client.CoreV1().Pods(p.object.Namespace).Patch(ctx, p.object.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	}
	if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
		p.node.Logger.WarnContext(ctx, "reporting a pod's status", "namespace", p.object.Namespace, "pod", p.object.Name, "err", err)
	}
}

// status is computed with p.mu held.
func (p *pod) status() corev1.PodStatus {
	started := metav1.NewTime(p.started)
	s := corev1.PodStatus{HostIP: p.node.Address.String(), HostIPs: []corev1.HostIP{{IP: p.node.Address.String()}}, StartTime: &started, Message: p.problem}
	if p.addr.IsValid() {
		s.PodIP = p.addr.String()
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	}
	var inits, mains summary
	s.InitContainerStatuses = inits.add(p, p.object.Spec.InitContainers)
	s.ContainerStatuses = mains.add(p, p.object.Spec.Containers)
	restarts := p.object.Spec.RestartPolicy
	switch {
	case inits.failed > 0 && p.problem != "":
		s.Phase = corev1.PodFailed
	case mains.started < len(p.object.Spec.Containers):
		s.Phase = corev1.PodPending
	case mains.ended == mains.started && mains.failed > 0 && restarts == corev1.RestartPolicyNever:
		s.Phase = corev1.PodFailed
	case mains.ended == mains.started && mains.failed == 0 && restarts != corev1.RestartPolicyAlways:
		s.Phase = corev1.PodSucceeded
	default:
		s.Phase = corev1.PodRunning
	}
	all := len(p.object.Spec.Containers)
	s.Conditions = []corev1.PodCondition{
		condition(corev1.PodScheduled, true),
		condition(corev1.PodInitialized, inits.started == len(p.object.Spec.InitContainers)),
		condition(corev1.ContainersReady, mains.ready == all),
		condition(corev1.PodReady, mains.ready == all),
	}
	return s
}

func condition(kind corev1.PodConditionType, holds bool) corev1.PodCondition {
	c := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(time.Now())}
	if holds {
		c.Status = corev1.ConditionTrue
	}
	return c
}

// A summary counts containers.
type summary struct{ started, ready, ended, failed int }

func (s *summary) add(p *pod, specs []corev1.Container) []corev1.ContainerStatus {
	var all []corev1.ContainerStatus
	for _, spec := range specs {
		status := corev1.ContainerStatus{
			Name: spec.Name, Image: spec.Image,
			State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing", Message: p.problem}},
		}
		if c := p.containers[spec.Name]; c != nil {
			c.fill(&status)
		}
		switch {
		case status.State.Running != nil:
			s.started++
		case status.State.Terminated != nil:
			s.started++
			s.ended++
			if status.State.Terminated.ExitCode != 0 {
				s.failed++
			}
		}
		if status.Ready {
			s.ready++
		}
		all = append(all, status)
	}
	return all
}

func (c *container) fill(status *corev1.ContainerStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	status.RestartCount, status.LastTerminationState = c.restarts, c.last
	if c.state != (corev1.ContainerState{}) {
		status.State = c.state
	}
	if img, ok := c.pod.node.image(c.spec.Image); ok {
		status.ImageID = "process://" + img.Binary
	}
	if c.process != nil {
		started := true
		status.Ready, status.Started = c.ready, &started
		status.ContainerID = fmt.Sprintf("process://%d", c.process.Pid)
	}
}
