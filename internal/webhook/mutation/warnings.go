package mutation

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// What the API server passes on: it cuts longer warnings, and drops the later
// ones when all together exceed 4096 bytes.
const (
	maxWarnings = 16
	maxWarning  = 256
)

// warnings are what works silently and surprises later.
func warnings(pod Pod, sa ServiceAccount, cfg Config, before record, skip map[string]bool, x *proxy) []string {
	var out []string
	warn := func(format string, args ...any) {
		out = append(out, truncate(fmt.Sprintf(format, args...), maxWarning))
	}
	who := fmt.Sprintf("service account %s/%s", sa.Namespace, sa.Name)
	warnIdentity(pod, sa, cfg, before, skip, who, warn)
	warnSkipped(pod, skip, x, warn)
	if value, present := pod.Annotations[workloadidentity.AnnotationInjectProxySidecar]; present && unclearProxy(pod) {
		warn(`annotation %s is %s: the token proxy is injected for "true" only`, workloadidentity.AnnotationInjectProxySidecar, quote(value))
	}
	if cfg.Endpoint.Suffix != "" {
		if value, present := pod.Annotations[cfg.Endpoint.annotation()]; present {
			if !strings.EqualFold(value, "true") && !strings.EqualFold(value, "false") {
				warn(`annotation %s is %s: the custom token endpoint is used for "true" only`, cfg.Endpoint.annotation(), quote(value))
			}
		}
	}
	if x != nil && cfg.Endpoint.asked(pod) {
		warn("the token proxy asks Entra, which refuses a token for %s: the proxy fails in a pod with the annotation %s", cfg.Endpoint.Audience, cfg.Endpoint.annotation())
	}
	x.warnings(pod, warn)
	if pod.hostNetwork {
		warn("the pod is on the host's network: a client that falls back to the metadata service gets the node's identity, not the one of %s", who)
	}
	warnUnknown(pod, sa, cfg, who, warn)
	return out[:min(len(out), maxWarnings)]
}

// warnIdentity compares what the service account says with what containers get.
func warnIdentity(pod Pod, sa ServiceAccount, cfg Config, before record, skip map[string]bool, who string, warn func(string, ...any)) {
	client := sa.Annotations[workloadidentity.AnnotationClientID]
	if lacking := pod.lacking(workloadidentity.EnvClientID, skip, before); client == "" && len(lacking) > 0 {
		warn("%s has no annotation %s: AZURE_CLIENT_ID is not set in %s", who, workloadidentity.AnnotationClientID, abbreviate(lacking))
	} else if client != "" && !isGUID(client) {
		warn("annotation %s of %s is %s, which is not a GUID: Entra will refuse it", workloadidentity.AnnotationClientID, who, quote(client))
	}
	if lacking := pod.lacking(workloadidentity.EnvTenantID, skip, before); tenant(sa, cfg) == "" && len(lacking) > 0 {
		warn("annotation %s of %s is empty: AZURE_TENANT_ID is not set in %s", workloadidentity.AnnotationTenantID, who, abbreviate(lacking))
	}
	file := cfg.tokenFile()
	for _, c := range pod.containers {
		if skip[c.name] {
			continue
		}
		if set, entry := c.value(workloadidentity.EnvClientID); client != "" && set != "" && set != client && !before.wrote(c.name, entry) {
			warn("container %s sets AZURE_CLIENT_ID to %s itself: the %s of %s does not reach it", quote(c.name), quote(set), quote(client), who)
		}
		if set, _ := c.value(workloadidentity.EnvFederatedTokenFile); set != file && (set == fileOf(LayoutV16) || set == fileOf(LayoutLegacy)) && !c.mountsFor(set) {
			warn("container %s sets AZURE_FEDERATED_TOKEN_FILE to %s, but the token is at %s: remove the variable", quote(c.name), set, file)
		}
	}
}

func warnSkipped(pod Pod, skip map[string]bool, x *proxy, warn func(string, ...any)) {
	left := 0
	for _, c := range pod.containers {
		if skip[c.name] || x.ours(c.name) {
			left++
		}
	}
	if len(pod.containers) > 0 && left == len(pod.containers) && len(skip) > 0 {
		warn("annotation %s leaves out every container: none of them has a token", workloadidentity.AnnotationSkipContainers)
	}
	for _, name := range slices.Sorted(maps.Keys(skip)) {
		switch {
		case x.ours(name):
			warn("annotation %s names %s: the token proxy cannot do without the token, the name is ignored", workloadidentity.AnnotationSkipContainers, quote(name))
		case !pod.has(name):
			warn("annotation %s names %s, but the pod has no such container (names are separated by ;)", workloadidentity.AnnotationSkipContainers, quote(name))
		}
	}
}

// warnUnknown reports labels and annotations of the contract's prefix that
// nobody reads where they are.
func warnUnknown(pod Pod, sa ServiceAccount, cfg Config, who string, warn func(string, ...any)) {
	forPods := []string{
		workloadidentity.AnnotationTokenExpiration, workloadidentity.AnnotationSkipContainers,
		workloadidentity.AnnotationInjectProxySidecar, workloadidentity.AnnotationProxySidecarPort,
	}
	if cfg.Endpoint.Suffix != "" {
		forPods = append(forPods, cfg.Endpoint.annotation())
	}
	forAccounts := []string{
		workloadidentity.AnnotationClientID, workloadidentity.AnnotationTenantID, workloadidentity.AnnotationTokenExpiration,
	}
	for _, key := range slices.Sorted(maps.Keys(pod.Annotations)) {
		switch {
		case !strings.HasPrefix(key, workloadidentity.Prefix) || slices.Contains(forPods, key):
		case slices.Contains(forAccounts, key):
			warn("annotation %s has no effect on a pod: set it on %s", key, who)
		default:
			warn("annotation %s of the pod is unknown and has no effect", quote(key))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(pod.Labels)) {
		if strings.HasPrefix(key, workloadidentity.Prefix) && key != workloadidentity.LabelUse {
			warn("label %s of the pod is unknown and has no effect", quote(key))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sa.Annotations)) {
		switch {
		case !strings.HasPrefix(key, workloadidentity.Prefix) || slices.Contains(forAccounts, key):
		case slices.Contains(forPods, key):
			warn("annotation %s has no effect on %s: set it on the pod", key, who)
		default:
			warn("annotation %s of %s is unknown and has no effect", quote(key), who)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sa.Labels)) {
		if strings.HasPrefix(key, workloadidentity.Prefix) {
			warn("label %s has no effect on %s: pods ask with the label %s", quote(key), who, workloadidentity.LabelUse)
		}
	}
}

// lacking returns the containers that get no value for a variable but the webhook's.
func (p Pod) lacking(variable string, skip map[string]bool, before record) []string {
	var names []string
	for _, c := range p.containers {
		if i := c.env.index(variable); !skip[c.name] && (i < 0 || before.wrote(c.name, c.env.items[i])) {
			names = append(names, c.name)
		}
	}
	return names
}

// value is the plain value of a variable in the container's manifest, and its entry.
func (c container) value(variable string) (string, map[string]any) {
	i := c.env.index(variable)
	if i < 0 {
		return "", nil
	}
	value, _ := c.env.items[i]["value"].(string)
	return value, c.env.items[i]
}

// mountsFor reports whether the container mounts something above a file.
func (c container) mountsFor(file string) bool {
	return slices.ContainsFunc(c.mounts.items, func(m map[string]any) bool {
		at, _ := m["mountPath"].(string)
		return at != "" && strings.HasPrefix(file, strings.TrimSuffix(at, "/")+"/")
	})
}

func abbreviate(containers []string) string {
	if len(containers) == 1 {
		return "container " + quote(containers[0])
	}
	return fmt.Sprintf("container %s and %d more", quote(containers[0]), len(containers)-1)
}
