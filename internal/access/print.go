package access

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/yaml"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
)

// Formats are the values that Print accepts besides the empty string.
func Formats() []string { return []string{"json", "yaml", "name"} }

// Print writes requests: as a table for people, or as "json", "yaml" or "name".
// A list is written as a list even if it has one element.
func Print(w io.Writer, format string, requests []lanyard.AccessRequest, list, namespaces bool, now time.Time) error {
	for i := range requests {
		requests[i].APIVersion, requests[i].Kind = lanyard.GroupVersion().String(), lanyard.KindAccessRequest
		requests[i].ManagedFields = nil
	}
	switch format {
	case "":
		return table(w, requests, namespaces, now)
	case "name":
		for _, r := range requests {
			fmt.Fprintf(w, "%s.%s/%s\n", strings.ToLower(lanyard.KindAccessRequest), lanyard.GroupName, r.Name)
		}
		return nil
	case "json", "yaml":
		var object any
		if list {
			object = map[string]any{"apiVersion": "v1", "kind": "List", "items": append([]lanyard.AccessRequest{}, requests...)}
		} else if len(requests) > 0 {
			object = requests[0]
		}
		if format == "yaml" {
			text, err := yaml.Marshal(object)
			if err != nil {
				return err
			}
			_, err = w.Write(text)
			return err
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(object)
	default:
		return fmt.Errorf("unknown output format %q: there are %s", format, strings.Join(Formats(), ", "))
	}
}

func table(w io.Writer, requests []lanyard.AccessRequest, namespaces bool, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	row := func(namespace string, rest ...string) {
		if namespaces {
			rest = append([]string{namespace}, rest...)
		}
		fmt.Fprintln(t, strings.Join(rest, "\t"))
	}
	row("NAMESPACE", "NAME", "BINDING", "POD", "REQUESTER", "DURATION", "STATE", "REASON")
	for i := range requests {
		r := &requests[i]
		pod := r.Spec.Pod
		if pod == "" {
			pod = "*"
		}
		row(r.Namespace, r.Name, plain(r.Spec.Binding), plain(pod), plain(r.Spec.Requester.Username), r.Spec.Duration.Duration.String(), State(r, now), plain(r.Spec.Reason))
	}
	return t.Flush()
}

// plain keeps what a requester wrote in its cell: no control characters that
// could draw another row, or colour the terminal.
func plain(s string) string {
	const limit = 60
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return ' '
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > limit {
		s = string(runes[:limit-1]) + "…"
	}
	return s
}

// State tells people how far a request is: "waits", "open, 12m left", "ended",
// "denied by bob", "revoked by bob".
func State(r *lanyard.AccessRequest, now time.Time) string {
	d := r.Status.Decision
	if d == nil {
		return "waits"
	}
	if d.Verdict != lanyard.Approved {
		return strings.ToLower(string(d.Verdict)) + " by " + plain(d.By)
	}
	switch end := d.At.Add(r.Spec.Duration.Duration); {
	case !now.Before(end):
		return "ended"
	case now.Before(d.At.Time):
		return "opens in " + left(d.At.Sub(now))
	default:
		return "open, " + left(end.Sub(now)) + " left"
	}
}

func left(d time.Duration) string {
	if d < 2*time.Minute {
		return d.Round(time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}
