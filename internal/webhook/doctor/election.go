package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LeaseName is the Lease by which the replicas agree on who acts.
const LeaseName = "azure-wi-webhook-doctor"

// annotationTried on the Lease is what leaders hand on.
const annotationTried = "lanyard.id/tried"

// A lease is the election of client-go, without its clients of every API group.
// As there, clocks need not agree: a replica takes over when it has seen the
// Lease unchanged for as long as that lasts.
type lease struct {
	api                 *API
	namespace, identity string
	lasts               time.Duration // renewed three times in it
	handOn              func() string // what the next leader has to know
	logger              *slog.Logger

	mu   sync.Mutex
	last coordinationv1.Lease // as it was written; only while leading
}

func (l *lease) path() string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + l.namespace + "/leases"
}

// run calls lead whenever this replica acts, with a context that ends when it
// no longer does, until ctx ends.
func (l *lease) run(ctx context.Context, lead func(context.Context)) {
	var seen string // resourceVersion
	var since time.Time
	failing := false
	for ctx.Err() == nil {
		current, err := l.read(ctx)
		if err == nil && (current.ResourceVersion != seen || since.IsZero()) {
			seen, since = current.ResourceVersion, time.Now()
		}
		if err == nil && (holder(current) == "" || holder(current) == l.identity || time.Since(since) > duration(current, l.lasts)) {
			if err = l.take(ctx, current); err == nil {
				failing = false
				l.hold(ctx, lead)
				since = time.Time{}
				continue
			}
		}
		switch {
		case err == nil || apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || ctx.Err() != nil:
		case !failing:
			failing = true
			l.logger.WarnContext(ctx, "the doctor waits for its lease", "lease", l.namespace+"/"+LeaseName, "err", err)
		}
		pause(ctx, l.lasts/3)
	}
}

// hold leads until the Lease is lost or ctx ends, and gives it back.
func (l *lease) hold(ctx context.Context, lead func(context.Context)) {
	l.logger.InfoContext(ctx, "the doctor of this replica acts", "identity", l.identity)
	leading, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		lead(leading)
	}()
	renewed := time.Now()
	for lost := false; !lost && leading.Err() == nil; {
		pause(leading, l.lasts/3)
		if leading.Err() != nil {
			break
		}
		limit, cancel := context.WithTimeout(leading, l.lasts/3) // or the Lease could end meanwhile
		err := l.renew(limit)
		cancel()
		switch {
		case err == nil:
			renewed = time.Now()
		case apierrors.IsConflict(err), time.Since(renewed) > l.lasts*2/3:
			lost = true
			l.logger.WarnContext(ctx, "the doctor of this replica has lost its lease", "err", err)
		}
	}
	stop()
	<-done
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	free := ""
	l.last.Spec.HolderIdentity = &free
	_ = l.write(limit, l.last) // else it expires
}

func (l *lease) read(ctx context.Context) (coordinationv1.Lease, error) {
	var current coordinationv1.Lease
	err := l.api.call(ctx, http.MethodGet, l.path()+"/"+LeaseName, nil, &current)
	if apierrors.IsNotFound(err) {
		return coordinationv1.Lease{}, nil
	}
	return current, err
}

func (l *lease) take(ctx context.Context, current coordinationv1.Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, seconds, turns := metav1.NowMicro(), int32(max(1, l.lasts.Seconds())), int32(1)
	if holder(current) != l.identity {
		current.Spec.AcquireTime = &now
	}
	if current.Spec.LeaseTransitions != nil {
		turns += *current.Spec.LeaseTransitions
	}
	current.Spec.HolderIdentity, current.Spec.RenewTime = &l.identity, &now
	current.Spec.LeaseDurationSeconds, current.Spec.LeaseTransitions = &seconds, &turns
	return l.write(ctx, current)
}

// renew writes the Lease, with what is to be handed on. When it returns nil,
// this replica was the leader a moment ago.
func (l *lease) renew(ctx context.Context) error {
	tried := l.handOn()
	l.mu.Lock()
	defer l.mu.Unlock()
	next, now := *l.last.DeepCopy(), metav1.NowMicro()
	next.Spec.RenewTime = &now
	metav1.SetMetaDataAnnotation(&next.ObjectMeta, annotationTried, tried)
	return l.write(ctx, next)
}

// tried is what the last leader has left.
func (l *lease) tried() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.Annotations[annotationTried]
}

// write is refused with a conflict if someone else has written since.
func (l *lease) write(ctx context.Context, next coordinationv1.Lease) error {
	method, path := http.MethodPut, l.path()+"/"+LeaseName
	if next.ResourceVersion == "" {
		method, path = http.MethodPost, l.path()
		next.ObjectMeta = metav1.ObjectMeta{Name: LeaseName, Namespace: l.namespace, Annotations: next.Annotations}
	}
	var written coordinationv1.Lease
	if err := l.api.call(ctx, method, path, next, &written); err != nil {
		return fmt.Errorf("writing the lease: %w", err)
	}
	if written.ResourceVersion == "" {
		return errors.New("writing the lease: the server's answer is no lease")
	}
	l.last = written
	return nil
}

func holder(l coordinationv1.Lease) string {
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return *l.Spec.HolderIdentity
}

func duration(l coordinationv1.Lease, or time.Duration) time.Duration {
	if l.Spec.LeaseDurationSeconds == nil {
		return or
	}
	return time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
