package webhook

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// tokenExpiration is the token's lifetime in seconds. The pod's annotation
// hides the service account's, valid or not.
func tokenExpiration(pod Pod, sa ServiceAccount) (int64, error) {
	const annotation = workloadidentity.AnnotationTokenExpiration
	value, owner := pod.Annotations[annotation], "the pod"
	if value == "" {
		value, owner = sa.Annotations[annotation], fmt.Sprintf("service account %s/%s", sa.Namespace, sa.Name)
	}
	if value == "" {
		return workloadidentity.DefaultTokenExpiration, nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, deny("annotation %s of %s: %v: write the token's lifetime as a number of seconds between %d and %d, without a unit",
			annotation, owner, err, workloadidentity.MinTokenExpiration, workloadidentity.MaxTokenExpiration)
	}
	if seconds < workloadidentity.MinTokenExpiration || seconds > workloadidentity.MaxTokenExpiration {
		return 0, deny("token expiration %d not valid. Expected value to be between %d and %d seconds: correct or remove the annotation %s of %s",
			seconds, workloadidentity.MinTokenExpiration, workloadidentity.MaxTokenExpiration, annotation, owner)
	}
	return seconds, nil
}

// skipped is the set of container names that are left alone.
func skipped(pod Pod) map[string]bool {
	skip := map[string]bool{}
	for _, name := range strings.Split(pod.Annotations[workloadidentity.AnnotationSkipContainers], ";") {
		if name = strings.TrimSpace(name); name != "" {
			skip[name] = true
		}
	}
	return skip
}

// warnings are what works silently and surprises later. Each fits into the 256
// characters that the API server passes on.
func warnings(pod Pod, sa ServiceAccount, cfg Config, skip map[string]bool) []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	who := fmt.Sprintf("service account %s/%s", sa.Namespace, sa.Name)

	client := sa.Annotations[workloadidentity.AnnotationClientID]
	if lacking := pod.lacking(workloadidentity.EnvClientID, skip); client == "" && len(lacking) > 0 {
		warn("%s has no annotation %s: AZURE_CLIENT_ID is not set in %s", who, workloadidentity.AnnotationClientID, abbreviate(lacking))
	} else if client != "" && !isGUID(client) {
		warn("annotation %s of %s is %s, which is not a GUID: Entra will refuse it", workloadidentity.AnnotationClientID, who, quote(client))
	}
	if lacking := pod.lacking(workloadidentity.EnvTenantID, skip); tenant(sa, cfg) == "" && len(lacking) > 0 {
		warn("annotation %s of %s is empty: AZURE_TENANT_ID is not set in %s", workloadidentity.AnnotationTenantID, who, abbreviate(lacking))
	}
	for _, name := range slices.Sorted(maps.Keys(skip)) {
		if !slices.ContainsFunc(pod.containers, func(c container) bool { return c.name == name }) {
			warn("annotation %s names %s, but the pod has no such container", workloadidentity.AnnotationSkipContainers, quote(name))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(pod.Annotations)) {
		switch {
		case !strings.HasPrefix(key, workloadidentity.Prefix) || slices.Contains(podAnnotations(), key):
		case key == workloadidentity.AnnotationClientID || key == workloadidentity.AnnotationTenantID:
			warn("annotation %s has no effect on a pod: set it on %s", key, who)
		default:
			warn("annotation %s of the pod is unknown and has no effect", quote(key))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sa.Annotations)) {
		switch {
		case !strings.HasPrefix(key, workloadidentity.Prefix) || slices.Contains(serviceAccountAnnotations(), key):
		case slices.Contains(podAnnotations(), key):
			warn("annotation %s has no effect on %s: set it on the pod", key, who)
		default:
			warn("annotation %s of %s is unknown and has no effect", quote(key), who)
		}
	}
	out = out[:min(len(out), 16)]
	for i, w := range out {
		out[i] = truncate(w, 256)
	}
	return out
}

func podAnnotations() []string {
	return []string{
		workloadidentity.AnnotationTokenExpiration, workloadidentity.AnnotationSkipContainers,
		workloadidentity.AnnotationInjectProxySidecar, workloadidentity.AnnotationProxySidecarPort,
	}
}

func serviceAccountAnnotations() []string {
	return []string{
		workloadidentity.AnnotationClientID, workloadidentity.AnnotationTenantID, workloadidentity.AnnotationTokenExpiration,
	}
}

// lacking returns the containers that get no value for a variable but the webhook's.
func (p Pod) lacking(variable string, skip map[string]bool) []string {
	var names []string
	for _, c := range p.containers {
		if !skip[c.name] && c.env.index(variable) < 0 {
			names = append(names, c.name)
		}
	}
	return names
}

func abbreviate(containers []string) string {
	if len(containers) == 1 {
		return "container " + quote(containers[0])
	}
	return fmt.Sprintf("container %s and %d more", quote(containers[0]), len(containers)-1)
}

// quote shows a value that a user wrote, at a length that fits a message.
func quote(s string) string { return strconv.QuoteToASCII(truncate(s, 60)) }

// truncate cuts s to at most n bytes, between characters.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}

func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch hyphen := i == 8 || i == 13 || i == 18 || i == 23; {
		case hyphen && c == '-':
		case !hyphen && strings.IndexByte("0123456789abcdefABCDEF", c) >= 0:
		default:
			return false
		}
	}
	return true
}
