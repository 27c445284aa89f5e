package mic

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	coordination "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/lanyard-id/lanyard/internal/mic/metrics"
)

// An Election chooses one of the replicas by a Lease.
type Election struct {
	Namespace, Name string
	Instance        string        // what this replica is called; must be set
	Duration        time.Duration // of the Lease without renewal; zero means 15 s
	// EndpointsRecord also writes who leads to the place where Pod Identity v1 did:
	// the annotation control-plane.alpha.kubernetes.io/leader of the Endpoints of
	// the same name, for scripts that read it. It decides nothing.
	EndpointsRecord bool
}

func (e *Election) duration() time.Duration {
	if e.Duration == 0 {
		return 15 * time.Second
	}
	return e.Duration
}

// options makes a manager take part; a nil Election leads at once.
func (e *Election) options(kube *rest.Config, o *manager.Options) error {
	if e == nil {
		return nil
	}
	lease := e.duration()
	renew, retry := lease/2, lease/4
	// A request about the Lease that hangs must not outlast it.
	own := rest.CopyConfig(kube)
	own.Timeout = renew
	leases, err := coordination.NewForConfig(own)
	if err != nil {
		return fmt.Errorf("making a client for the Lease: %w", err)
	}
	o.LeaderElection, o.LeaderElectionID, o.LeaderElectionNamespace = true, e.Name, e.Namespace
	o.LeaderElectionReleaseOnCancel = true
	o.LeaseDuration, o.RenewDeadline, o.RetryPeriod = &lease, &renew, &retry
	o.LeaderElectionResourceLockInterface = &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name},
		Client:    leases,
		// Two processes may be called the same.
		LockConfig: resourcelock.ResourceLockConfig{Identity: e.Instance + "_" + string(uuid.NewUUID())},
	}
	return nil
}

// setUp counts elections and keeps the record.
func (e *Election) setUp(m manager.Manager, counters *metrics.Metrics, logger *slog.Logger) error {
	if e == nil {
		return nil
	}
	// A runnable waits for the election by itself.
	return m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		counters.Elected()
		logger.InfoContext(ctx, "this replica leads", "instance", e.Instance)
		if e.EndpointsRecord {
			e.record(ctx, m.GetAPIReader(), m.GetClient(), logger)
		}
		return nil
	}))
}

// record renews the record until the context ends.
func (e *Election) record(ctx context.Context, live client.Reader, c client.Client, logger *slog.Logger) {
	ticker := time.NewTicker(e.duration() / 2)
	defer ticker.Stop()
	start := metav1.Now()
	for {
		if err := e.write(ctx, live, c, start); err != nil && ctx.Err() == nil {
			logger.WarnContext(ctx, "the record of the leader was not written", "endpoints", e.Namespace+"/"+e.Name, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (e *Election) write(ctx context.Context, live client.Reader, c client.Client, since metav1.Time) error {
	var o corev1.Endpoints //nolint:staticcheck // deprecated, and what v1 used
	err := live.Get(ctx, types.NamespacedName{Namespace: e.Namespace, Name: e.Name}, &o)
	if client.IgnoreNotFound(err) != nil {
		return err
	}
	var was resourcelock.LeaderElectionRecord
	if text := o.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]; text != "" && json.Unmarshal([]byte(text), &was) != nil {
		was = resourcelock.LeaderElectionRecord{} // not ours to keep
	}
	is := resourcelock.LeaderElectionRecord{
		HolderIdentity: e.Instance, LeaseDurationSeconds: int(e.duration() / time.Second),
		AcquireTime: since, RenewTime: metav1.Now(), LeaderTransitions: was.LeaderTransitions,
	}
	if was.HolderIdentity != "" && was.HolderIdentity != e.Instance {
		is.LeaderTransitions++
	}
	text, marshalErr := json.Marshal(is)
	if marshalErr != nil {
		return marshalErr
	}
	if o.Annotations == nil {
		o.Annotations = map[string]string{}
	}
	o.Annotations[resourcelock.LeaderElectionRecordAnnotationKey] = string(text)
	if apierrors.IsNotFound(err) {
		o.Namespace, o.Name = e.Namespace, e.Name
		return c.Create(ctx, &o)
	}
	err = c.Update(ctx, &o)
	if apierrors.IsConflict(err) {
		return nil // another one writes too: the next time
	}
	return err
}
