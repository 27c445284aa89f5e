package mic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// Probes answers the kubelet on every replica: /healthz with Pod Identity v1's
// texts, "Active" on the one that leads and "Not Active" on the others, and
// /readyz, which is 200 once the caches are filled.
type Probes struct {
	Address string
	Leads   <-chan struct{} // closed when this replica leads
	Cache   cache.Cache
}

// NeedLeaderElection tells the manager to start the probes at once.
func (p *Probes) NeedLeaderElection() bool { return false }

// Start serves until the context ends.
func (p *Probes) Start(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", p.Address)
	if err != nil {
		return fmt.Errorf("listening for probes: %w", err)
	}
	s := &http.Server{Handler: p.handler(), ReadHeaderTimeout: 5 * time.Second}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = s.Close() // a probe that is cut off is asked again
	})
	err = s.Serve(l)
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (p *Probes) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-p.Leads:
			fmt.Fprint(w, "Active")
		default:
			fmt.Fprint(w, "Not Active")
		}
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if !p.Cache.WaitForCacheSync(ctx) {
			http.Error(w, "the caches are not filled yet", http.StatusServiceUnavailable)
		}
	})
	return mux
}
