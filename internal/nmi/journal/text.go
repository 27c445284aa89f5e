package journal

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/lanyard-id/lanyard/internal/nmi"
)

// maxResource is what of a caller's resource stands in a note.
const maxResource = 200

func issued(d nmi.Decision) string {
	who := subject(d)
	if d.Excepted {
		return fmt.Sprintf("token for %s passed through to %s: an AzurePodIdentityException names its label; it expires %s", short(d.Resource), who, stamp(d.Expires))
	}
	text := fmt.Sprintf("token for %s issued to %s as AzureIdentity %s/%s; it expires %s", short(d.Resource), who, d.Identity.Namespace, d.Identity.Name, stamp(d.Expires))
	if d.Clipped() {
		text += fmt.Sprintf(" as reported, when the binding closes; the token itself is valid until %s", stamp(d.TokenExpires))
	}
	return text
}

func refused(d nmi.Decision) string {
	return fmt.Sprintf("token for %s refused to %s: %s: %s", short(d.Resource), subject(d), d.Reason, d.Text)
}

func subject(d nmi.Decision) string {
	s := fmt.Sprintf("pod %s/%s (uid %s, service account %s) on node %s", d.Pod.Namespace, d.Pod.Name, d.Pod.UID, d.Pod.ServiceAccount, d.Pod.Node)
	if d.For != "" {
		s += " through " + d.For
	}
	return s
}

func short(s string) string {
	if len(s) > maxResource {
		return fmt.Sprintf("%.200q…", s)
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// audit writes one line. Its keys are stable.
func audit(ctx context.Context, logger *slog.Logger, d nmi.Decision) {
	if logger == nil {
		logger = slog.Default()
	}
	decision := "refused"
	if d.Issued {
		decision = "issued"
	}
	var fixed [20]slog.Attr // on the stack
	attrs := append(fixed[:0],
		slog.String("decision", decision),
		slog.String("namespace", d.Pod.Namespace), slog.String("pod", d.Pod.Name), slog.String("uid", d.Pod.UID),
		slog.String("serviceAccount", d.Pod.ServiceAccount), slog.String("node", d.Pod.Node),
		slog.String("resource", d.Resource), slog.Bool("excepted", d.Excepted))
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
	if d.Issued {
		attrs = append(attrs, slog.String("expires", stamp(d.Expires)), slog.Bool("clipped", d.Clipped()))
		if d.Clipped() {
			attrs = append(attrs, slog.String("tokenExpires", stamp(d.TokenExpires)))
		}
	} else {
		attrs = append(attrs, slog.String("reason", d.Reason), slog.String("text", d.Text))
	}
	logger.LogAttrs(ctx, slog.LevelInfo, "audit", attrs...)
}
