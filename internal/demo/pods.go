package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// A report is the line that the workload prints: see cmd/workload.
type report struct {
	OK                bool      `json:"ok"`
	FirstToken        time.Time `json:"firstToken"`
	SecondTokenMillis float64   `json:"secondTokenMillis"`
	Status            int       `json:"status"`
	Error             string    `json:"error"`
}

// runPod has a pod made, waits until it has ended and returns what it reported
// and the instant before the request that created it.
func runPod(ctx context.Context, kube kubernetes.Interface, create func(context.Context) (*corev1.Pod, error)) (report, time.Time, error) {
	created := time.Now()
	pod, err := create(ctx)
	if err != nil {
		return report{}, created, fmt.Errorf("creating the pod: %w", err)
	}
	if err := waitForEnd(ctx, kube, pod); err != nil {
		return report{}, created, err
	}
	logs, err := kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: workloadContainer}).Stream(ctx)
	if err != nil {
		return report{}, created, fmt.Errorf("reading the logs of the pod %s: %w", pod.Name, err)
	}
	defer logs.Close()
	text, err := io.ReadAll(io.LimitReader(logs, 1<<20))
	if err != nil {
		return report{}, created, fmt.Errorf("reading the logs of the pod %s: %w", pod.Name, err)
	}
	r, err := lastReport(text)
	if err != nil {
		return report{}, created, fmt.Errorf("the pod %s: %w", pod.Name, err)
	}
	return r, created, nil
}

// waitForEnd waits until the pod has succeeded or failed, by a watch. The
// API server closes watches when it likes, so there may be several.
func waitForEnd(ctx context.Context, kube kubernetes.Interface, pod *corev1.Pod) error {
	for {
		w, err := kube.CoreV1().Pods(pod.Namespace).Watch(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("metadata.name", pod.Name).String(),
		})
		if err != nil {
			return fmt.Errorf("waiting for the pod %s: %w", pod.Name, err)
		}
		ended, err := ended(ctx, w, pod)
		w.Stop()
		if ended || err != nil {
			return err
		}
	}
}

func ended(ctx context.Context, w watch.Interface, pod *corev1.Pod) (bool, error) {
	for {
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("the pod %s is still %s: %w", pod.Name, state(pod), ctx.Err())
		case e, open := <-w.ResultChan():
			if !open {
				return false, nil
			}
			p, ok := e.Object.(*corev1.Pod)
			if !ok || e.Type == watch.Deleted {
				return false, fmt.Errorf("the pod %s went away: %s", pod.Name, e.Type)
			}
			*pod = *p
			if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
				return true, nil
			}
		}
	}
}

// state says how far a pod has come, with the reason if it waits for one.
func state(pod *corev1.Pod) string {
	for _, s := range pod.Status.ContainerStatuses {
		if w := s.State.Waiting; w != nil && w.Reason != "" {
			return fmt.Sprintf("%s (%s: %s)", pod.Status.Phase, w.Reason, w.Message)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
			return fmt.Sprintf("%s (%s: %s)", pod.Status.Phase, c.Reason, c.Message)
		}
	}
	if pod.Status.Phase == "" {
		return "new"
	}
	return string(pod.Status.Phase)
}

// lastReport finds the last line of text that is a report.
func lastReport(text []byte) (report, error) {
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	for i := len(lines) - 1; i >= 0; i-- {
		var r report
		if bytes.HasPrefix(lines[i], []byte("{")) && json.Unmarshal(lines[i], &r) == nil {
			return r, nil
		}
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return report{}, errors.New("printed nothing")
	}
	return report{}, fmt.Errorf("printed no report, but: %.500s", text)
}
