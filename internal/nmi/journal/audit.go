package journal

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/nmi"
)

// A trail writes audit lines. Most of a line is the same for all tokens that a
// pod gets by a binding: slog formats that once.
type trail struct {
	mu    sync.RWMutex
	known map[subjectKey]slog.Handler
}

// maxSubjects bounds what a trail remembers; a node has some hundred pods.
const maxSubjects = 1024

// A subjectKey stands for what subjectAttrs tells of a decision. The objects
// are never modified, and a UID is for ever of one pod.
type subjectKey struct {
	uid      string
	address  netip.Addr
	caller   string
	binding  *v1.AzureIdentityBinding
	identity *v1.AzureIdentity
	excepted bool
}

// write writes one line. Its keys are stable.
func (t *trail) write(ctx context.Context, logger *slog.Logger, d nmi.Decision) {
	h := cmp.Or(logger, slog.Default()).Handler()
	if !h.Enabled(ctx, slog.LevelInfo) {
		return
	}
	line := slog.NewRecord(time.Now(), slog.LevelInfo, "audit", 0) // where in the program it was written tells nothing
	if d.Issued {
		h = t.of(h, d)
		line.AddAttrs(slog.String("decision", "issued"), slog.String("resource", d.Resource), slog.String("expires", stamp(d.Expires)), slog.Bool("clipped", d.Clipped()))
		if d.Clipped() {
			line.AddAttrs(slog.String("tokenExpires", stamp(d.TokenExpires)))
		}
	} else {
		h = h.WithAttrs(subjectAttrs(d))
		line.AddAttrs(slog.String("decision", "refused"), slog.String("resource", d.Resource), slog.String("reason", d.Reason), slog.String("text", d.Text))
	}
	if d.Agent != "" {
		line.AddAttrs(slog.String("userAgent", d.Agent))
	}
	_ = h.Handle(ctx, line) // as slog.Logger does
}

// of returns the handler that knows a decision's subject already.
func (t *trail) of(h slog.Handler, d nmi.Decision) slog.Handler {
	k := subjectKey{d.Pod.UID, d.Address, d.For, d.Binding, d.Identity, d.Excepted}
	if k.uid == "" {
		return h.WithAttrs(subjectAttrs(d))
	}
	t.mu.RLock()
	known := t.known[k]
	t.mu.RUnlock()
	if known != nil {
		return known
	}
	known = h.WithAttrs(subjectAttrs(d))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || len(t.known) >= maxSubjects {
		t.known = map[subjectKey]slog.Handler{}
	}
	t.known[k] = known
	return known
}

// subjectAttrs tell who asked and by what a decision was made.
func subjectAttrs(d nmi.Decision) []slog.Attr {
	attrs := []slog.Attr{
		slog.String("namespace", d.Pod.Namespace), slog.String("pod", d.Pod.Name), slog.String("uid", d.Pod.UID),
		slog.String("serviceAccount", d.Pod.ServiceAccount), slog.String("node", d.Pod.Node), slog.Bool("excepted", d.Excepted),
	}
	if d.Address.IsValid() {
		attrs = append(attrs, slog.String("address", d.Address.String()))
	}
	if d.For != "" {
		attrs = append(attrs, slog.String("caller", d.For))
	}
	if d.Binding != nil {
		attrs = append(attrs, slog.String("binding", d.Binding.Namespace+"/"+d.Binding.Name))
	}
	if d.Identity != nil {
		attrs = append(attrs, slog.String("identity", d.Identity.Namespace+"/"+d.Identity.Name), slog.String("identityClientID", d.Identity.Spec.ClientID), slog.String("identityResourceID", d.Identity.Spec.ResourceID))
	}
	return attrs
}
