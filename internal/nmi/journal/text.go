package journal

import (
	"fmt"
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
