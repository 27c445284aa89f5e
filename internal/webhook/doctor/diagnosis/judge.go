package diagnosis

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// A Finding is what is wrong with a pod, and the reason of its Event.
type Finding string

// Findings.
const (
	Healthy Finding = ""

	// NotMutated is a pod without the volume of the token: the webhook never
	// saw it.
	NotMutated Finding = "NotMutated"

	// Incomplete is a pod with the volume, in which a container lacks the
	// mount or the variables, or the token proxy is missing that it asks for:
	// something has changed it after the webhook. A new pod would be the same.
	Incomplete Finding = "Incomplete"

	// StaleIdentity is a pod whose service account names another client id
	// than it did when the pod was created.
	StaleIdentity Finding = "StaleIdentity"
)

// A Verdict is a finding and what may be done about it.
type Verdict struct {
	Finding Finding
	Detail  string // what the pod lacks, for people
	Keep    string // why an eviction would not help; empty: it may
}

// Judge says what is wrong with a pod. The labels are those of its namespace,
// sa is its service account as far as it is known: without annotations there is
// no StaleIdentity.
func Judge(pod Subject, labels map[string]string, hook Hook, sa mutation.ServiceAccount, cfg mutation.Config) Verdict {
	switch {
	case !pod.Labelled(), pod.Over, pod.Static, pod.Annotations[AnnotationDoctor] == "ignore":
		return Verdict{}
	case !hook.selects(labels, pod.Labels):
		return Verdict{}
	}
	has := examine(pod, sa, cfg)
	var v Verdict
	switch client := sa.Annotations[workloadidentity.AnnotationClientID]; {
	case has.volume && pod.bearer:
		return Verdict{}
	case has.volume:
		v = Verdict{Finding: NotMutated, Detail: "it has no projected token"}
	case !has.sound():
		v = Verdict{Finding: Incomplete, Detail: has.detail()}
	case has.identity != "":
		v = Verdict{Finding: StaleIdentity, Detail: fmt.Sprintf("service account %s names client id %.60q, and AZURE_CLIENT_ID %s", pod.ServiceAccount, client, has.identity)}
	default:
		return Verdict{}
	}
	v.Keep = keep(pod, v.Finding, hook, sa, cfg)
	return v
}

// keep says why a pod is not to be evicted.
func keep(pod Subject, finding Finding, hook Hook, sa mutation.ServiceAccount, cfg mutation.Config) string {
	fresh := pod.Pod
	if fresh.GenerateName != "" {
		fresh.Name = ""
	}
	_, refused := mutation.Mutate(fresh, sa, cfg)
	switch known := pod.Owner.Group + "/" + pod.Owner.Kind; {
	case pod.Owner.UID == "":
		return "it has no controller that would make it again"
	case known == "batch/Job":
		return "its Job would count the eviction as a failure and start again"
	case known != "apps/ReplicaSet" && known != "apps/StatefulSet" && known != "apps/DaemonSet" && known != "/ReplicationController":
		return fmt.Sprintf("it is not known what its controller, a %.60s, makes of an eviction", pod.Owner.Kind)
	case pod.pinned() != "":
		return "its annotation " + pod.pinned() + " says that it must not be"
	case finding == Incomplete:
		return "something changes such pods after the webhook, so a new one would be the same"
	case !hook.Found:
		return "the webhook's configuration is missing, so a new pod would be the same"
	case !hook.Asked:
		return "the webhook's configuration has no rule for new pods"
	case !hook.Trusted:
		return "the webhook's configuration has no caBundle yet"
	case hook.Conditional:
		return "the webhook's configuration has matchConditions, which only the API server evaluates"
	case refused != nil:
		return "the webhook would refuse a new pod: " + refused.Error()
	}
	return ""
}

// pinned returns the annotation by which others who evict pods, the cluster's
// autoscalers, are told to leave this one alone.
func (s Subject) pinned() string {
	for key, value := range map[string]string{"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"} {
		if s.Annotations[key] == value {
			return key
		}
	}
	return ""
}

// lack is what a pod has not.
type lack struct {
	volume     bool
	containers []string // without mount or variables
	proxy      bool
	identity   string // how AZURE_CLIENT_ID differs from the service account's; empty if it does not
}

func (l lack) sound() bool { return len(l.containers) == 0 && !l.proxy }

func (l lack) detail() string {
	var texts []string
	if len(l.containers) > 0 {
		texts = append(texts, fmt.Sprintf("the token is not mounted or not named in container %.200s", strings.Join(l.containers, ", ")))
	}
	if l.proxy {
		texts = append(texts, "the token proxy is missing")
	}
	return strings.Join(texts, "; ")
}

// examine compares a pod with what the mutation would make of it, in whichever
// layout and under whichever name suits it best: a pod that has a name now was
// perhaps created with a prefix only.
func examine(pod Subject, sa mutation.ServiceAccount, cfg mutation.Config) lack {
	best := lack{volume: true}
	sa.Annotations = without(sa.Annotations, workloadidentity.AnnotationTokenExpiration)
	p := pod.Pod
	// A bad value may have come after the pod, and says nothing about it.
	p.Annotations = without(p.Annotations, workloadidentity.AnnotationTokenExpiration, workloadidentity.AnnotationProxySidecarPort)
	for _, layout := range []mutation.Layout{mutation.LayoutV16, mutation.LayoutLegacy} {
		for _, name := range []string{p.Name, ""} {
			if name == "" && (p.GenerateName == "" || layout == mutation.LayoutLegacy) {
				continue
			}
			p, cfg := p, cfg
			p.Name, cfg.Layout = name, layout
			result, err := mutation.Mutate(p, sa, cfg)
			if err != nil {
				continue
			}
			l := lacking(pod, sa, result.Patch)
			switch {
			case !l.volume && l.sound():
				return l
			case best.volume && !l.volume:
				best = l
			}
		}
	}
	return best
}

func without(m map[string]string, keys ...string) map[string]string {
	m = maps.Clone(m)
	for _, k := range keys {
		delete(m, k)
	}
	return m
}

// lacking reads from a patch of the mutation what matters for tokens: what it
// adds, not what it would write differently today.
func lacking(pod Subject, sa mutation.ServiceAccount, patch []mutation.Operation) lack {
	var l lack
	client := sa.Annotations[workloadidentity.AnnotationClientID]
	for _, op := range patch {
		part := strings.Split(op.Path, "/") // "", spec, containers, 0, env, -
		if len(part) < 3 || part[1] != "spec" {
			continue
		}
		switch list := part[2]; {
		case list == "volumes":
			l.volume = l.volume || op.Op == "add" && len(part) <= 4
		case list != "containers" && list != "initContainers":
		case len(part) <= 4:
			l.proxy = l.proxy || op.Op == "add"
		case len(part) > 4:
			name := pod.containers[strings.Join(part[:4], "/")]
			if name == workloadidentity.ProxyContainer || name == workloadidentity.ProxyInitContainer {
				continue
			}
			added := names(op)
			switch {
			case op.Op == "add" && part[4] == "volumeMounts", slices.Contains(added, workloadidentity.EnvFederatedTokenFile):
				if !slices.Contains(l.containers, name) {
					l.containers = append(l.containers, name)
				}
			}
			switch {
			case client == "":
			case slices.Contains(added, workloadidentity.EnvClientID):
				l.identity = "is not set"
			case op.Op == "replace" && part[4] == "env" && op.Value == client:
				l.identity = "is another"
			}
		}
	}
	return l
}

// names are the variables that an operation adds.
func names(op mutation.Operation) []string {
	if op.Op != "add" || !strings.Contains(op.Path, "/env") {
		return nil
	}
	type named struct{ Name string }
	raw, err := json.Marshal(op.Value)
	if err != nil {
		return nil
	}
	var one named
	if json.Unmarshal(raw, &one) == nil {
		return []string{one.Name}
	}
	var all []named
	_ = json.Unmarshal(raw, &all)
	out := make([]string, 0, len(all))
	for _, n := range all {
		out = append(out, n.Name)
	}
	return out
}
