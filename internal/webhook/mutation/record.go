package mutation

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A record is what the pod's annotation AnnotationInjected says: the variables
// that the webhook took from a service account, and where it put them.
//
// The API server calls the webhook again when another webhook has changed the
// pod, perhaps its service account. Then a variable of the first account has to
// give way to the second's, while one that the user wrote has to stay; the two
// look alike in the pod. The webhook cannot remember either: there are two
// replicas and dry runs. So the pod itself says it. Who forges the annotation
// can make the webhook replace variables that are in the same manifest, by
// those of the service account that the pod runs as anyway.
type record struct {
	ServiceAccount string           `json:"serviceAccount"`
	Env            map[string]taken `json:"env,omitempty"`
}

// taken is a variable's value and the containers that got it.
type taken struct {
	Value      string   `json:"value"`
	Containers []string `json:"containers"` // sorted
}

// readRecord returns the pod's record. What cannot be read is as good as none:
// the variables count as the user's.
func readRecord(pod Pod) record {
	var r record
	if json.Unmarshal([]byte(pod.Annotations[workloadidentity.AnnotationInjected]), &r) != nil {
		return record{}
	}
	return r
}

// wrote reports whether an entry of a container's env is as the webhook wrote it.
func (r record) wrote(container string, entry map[string]any) bool {
	name, _ := entry["name"].(string)
	t, ok := r.Env[name]
	return ok && t.Value != "" && len(entry) == 2 && entry["value"] == t.Value && slices.Contains(t.Containers, container)
}

// note remembers that a container has the webhook's value of a variable.
func (r *record) note(container string, v envVar) {
	if r.Env == nil {
		r.Env = map[string]taken{}
	}
	t := r.Env[v.Name]
	t.Value = v.Value
	if i, found := slices.BinarySearch(t.Containers, container); !found {
		t.Containers = slices.Insert(t.Containers, i, container)
	}
	r.Env[v.Name] = t
}

// annotate writes the record of this pass, if there is or was anything in it.
func (p *plan) annotate(pod Pod) ([]Operation, error) {
	const key = workloadidentity.AnnotationInjected
	before, present := pod.Annotations[key]
	if len(p.after.Env) == 0 && !present {
		return nil, nil
	}
	text, err := json.Marshal(p.after)
	if err != nil {
		return nil, err
	}
	now := string(text)
	switch {
	case present && now == before:
		return nil, nil
	case !pod.metadata:
		return []Operation{{Op: "add", Path: "/metadata", Value: map[string]any{"annotations": map[string]string{key: now}}}}, nil
	case pod.Annotations == nil:
		return []Operation{{Op: "add", Path: "/metadata/annotations", Value: map[string]string{key: now}}}, nil
	}
	return []Operation{{Op: "add", Path: "/metadata/annotations/" + strings.ReplaceAll(key, "/", "~1"), Value: now}}, nil
}
