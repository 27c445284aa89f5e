package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/klog/v2"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/lab"
)

func firstToken() Experiment {
	return Experiment{
		Name: "first-token", What: "a whole lab: real kubelet, real containers, the local cloud", Limit: 4 * time.Minute, Run: measureFirstToken,
		Rows: []Row{
			{"first-token", "container started to first token, real kubelet, slowest pod", "10-60 s published (section 7)", "1 s"},
			{"pod-to-token", "pod created to first token, real kubelet, slowest pod", "10-60 s published (section 7)", "-"},
		},
	}
}

// A report is the line that cmd/workload prints.
type report struct {
	FirstToken       time.Time `json:"firstToken"`
	FirstTokenMillis float64   `json:"firstTokenMillis"` // since the program's start
	Error            string    `json:"error"`
}

// Estate starts a whole lab with its cloud. End removes it.
func (r *Runner) Estate(ctx context.Context) (e *estate.Estate, end func(context.Context) error, err error) {
	dir, err := os.MkdirTemp("", "lanyard-bench-")
	if err != nil {
		return nil, nil, fmt.Errorf("making a directory: %w", err)
	}
	klog.SetLogger(logr.Discard()) // watches that end with the lab are no news
	e, err = estate.Up(ctx, estate.Config{
		StateDir: dir, BinDir: r.Bin, Self: []string{filepath.Join(r.Bin, "lanyard"), "internal"}, ProcessNode: len(lab.Missing()) > 0,
		Step: r.Step, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return e, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(e.Stop(ctx), os.RemoveAll(dir))
	}, nil
}

func measureFirstToken(ctx context.Context, r *Runner) (_ []Measurement, err error) {
	e, end, err := r.Estate(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end(ctx)) }()
	id, ok := e.Cloud.Identities[estate.PodIdentity]
	if !ok {
		return nil, fmt.Errorf("the lab's cloud has no identity %s", estate.PodIdentity)
	}
	identity := &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: estate.PodIdentity, Namespace: metav1.NamespaceDefault},
		Spec:       v1.AzureIdentitySpec{Type: v1.UserAssignedMSI, ResourceID: id.ResourceID, ClientID: id.ClientID},
	}
	binding := &v1.AzureIdentityBinding{
		ObjectMeta: metav1.ObjectMeta{Name: estate.PodIdentity, Namespace: metav1.NamespaceDefault},
		Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: estate.PodIdentity, Selector: estate.PodIdentity},
	}
	if err := errors.Join(e.Objects.Create(ctx, identity), e.Objects.Create(ctx, binding)); err != nil {
		return nil, err
	}
	pods := 5
	if r.Quick {
		pods = 3
	}
	var program, created []time.Duration
	for i := range pods {
		r.Step("pod %d of %d asks for its first token", i+1, pods)
		p, c, err := onePod(ctx, e, fmt.Sprintf("first-%d", i))
		if err != nil {
			return nil, err
		}
		program, created = append(program, p), append(created, c)
	}
	note := fmt.Sprintf("%d pods one after the other, each assigned anew; p50 %s after the program's start, %s after the pod's creation", pods, meter.Brief(meter.Percentile(program, 0.5)), meter.Brief(meter.Percentile(created, 0.5)))
	if e.Simulated() {
		note += "; the node was simulated: there is no kubelet here"
	}
	worst, whole := slices.Max(program), slices.Max(created)
	return []Measurement{
		{Row: Row{Name: "first-token"}, Now: meter.Brief(worst), Value: worst.Seconds(), Unit: "s", OK: worst <= time.Second && !e.Simulated(), Note: note},
		{Row: Row{Name: "pod-to-token"}, Now: meter.Brief(whole), Value: whole.Seconds(), Unit: "s", Ratio: Times(10*time.Second, whole), OK: !e.Simulated(), Note: "with the scheduler, the sandbox and the container's start; the load.Comparison is with 10 s"},
	}, nil
}

// onePod runs a pod that asks for a token and returns how long that took, from
// its program's start and from its creation.
func onePod(ctx context.Context, e *estate.Estate, name string) (program, created time.Duration, err error) {
	pods := e.Lab.Client.CoreV1().Pods(metav1.NamespaceDefault)
	started := time.Now()
	_, err = pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.BindingLabel: estate.PodIdentity}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{{
				Name: "workload", Image: "lanyard/workload:dev", ImagePullPolicy: corev1.PullIfNotPresent,
				Args: []string{"imds", "--vault", e.Cloud.VaultURL, "--secret", estate.Secret},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return 0, 0, fmt.Errorf("creating the pod %s: %w", name, err)
	}
	err = bed.Until(ctx, 90*time.Second, func() error {
		list, err := pods.List(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), ResourceVersion: "0"})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
				return nil
			}
		}
		return fmt.Errorf("the pod %s has not ended", name)
	})
	if err != nil {
		return 0, 0, err
	}
	log, err := pods.GetLogs(name, &corev1.PodLogOptions{}).Stream(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the log of the pod %s: %w", name, err)
	}
	defer log.Close()
	text, err := io.ReadAll(io.LimitReader(log, 1<<20))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the log of the pod %s: %w", name, err)
	}
	got, err := readReport(text)
	if err != nil {
		return 0, 0, fmt.Errorf("the pod %s: %w", name, err)
	}
	return time.Duration(got.FirstTokenMillis * float64(time.Millisecond)), got.FirstToken.Sub(started), nil
}

// readReport finds the report among the lines of a log.
func readReport(text []byte) (report, error) {
	for line := range bytes.Lines(text) {
		var r report
		if json.Unmarshal(line, &r) != nil {
			continue
		}
		if r.FirstToken.IsZero() {
			return r, fmt.Errorf("got no token: %s", r.Error)
		}
		return r, nil
	}
	return report{}, fmt.Errorf("printed no report, but: %.300s", text)
}
