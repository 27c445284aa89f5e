package diagnosis

import (
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// AnnotationDoctor on a pod, with the value "ignore", keeps the doctor away.
const AnnotationDoctor = "lanyard.id/doctor"

// A Subject is what the doctor reads of a pod.
type Subject struct {
	mutation.Pod

	Namespace string
	UID       string
	Created   time.Time // the API server's clock, in seconds
	Owner     Owner     // its controller; the zero Owner if it has none
	Ready     bool
	Over      bool // it has finished or is being deleted
	Static    bool // the kubelet's own: no admission, no service account

	containers map[string]string // names by JSON pointer
	bearer     bool              // a container is told of a projected token that it mounts, whoever put it there
}

// An Owner is the controller that a pod names. Who makes a pod can name any:
// it says which pods belong together, never which pod is evicted.
type Owner struct{ Group, Kind, Name, UID string }

// told is a container and what it is told of a token.
type told struct {
	Name         string
	Env          []struct{ Name, Value string }
	VolumeMounts []struct{ Name, MountPath string }
}

// projected is a volume with the tokens in it.
type projected struct {
	Name      string
	Projected struct {
		Sources []struct {
			ServiceAccountToken *struct{ Path string }
		}
	}
}

// bears reports whether AZURE_FEDERATED_TOKEN_FILE names a token that is
// there: an author may mount one without a webhook, and another webhook may
// call its volume as it likes.
func (c told) bears(volumes []projected) bool {
	for _, v := range c.Env {
		if v.Name != workloadidentity.EnvFederatedTokenFile {
			continue
		}
		for _, m := range c.VolumeMounts {
			for _, volume := range volumes {
				for _, source := range volume.Projected.Sources {
					if token := source.ServiceAccountToken; volume.Name == m.Name && token != nil && path.Join(m.MountPath, token.Path) == path.Clean(v.Value) {
						return true
					}
				}
			}
		}
	}
	return false
}

// ParseSubject reads a pod as the API server encodes it.
func ParseSubject(raw []byte) (Subject, error) {
	pod, err := mutation.ParsePod(raw)
	if err != nil {
		return Subject{}, err
	}
	var o struct {
		Metadata struct {
			Namespace         string
			UID               string
			CreationTimestamp time.Time
			DeletionTimestamp *time.Time
			OwnerReferences   []struct {
				APIVersion, Kind, Name, UID string
				Controller                  bool
			}
		}
		Spec struct {
			Containers, InitContainers []told
			Volumes                    []projected
		}
		Status struct {
			Phase      string
			Conditions []struct{ Type, Status string }
		}
	}
	if err := json.Unmarshal(raw, &o); err != nil {
		return Subject{}, fmt.Errorf("decoding the pod: %w", err)
	}
	m := o.Metadata
	s := Subject{
		Pod: pod, Namespace: m.Namespace, UID: m.UID, Created: m.CreationTimestamp,
		Over:       m.DeletionTimestamp != nil || o.Status.Phase == "Succeeded" || o.Status.Phase == "Failed",
		containers: map[string]string{},
	}
	for _, r := range m.OwnerReferences {
		if r.Controller {
			group, _, named := strings.Cut(r.APIVersion, "/")
			if !named {
				group = ""
			}
			s.Owner = Owner{Group: group, Kind: r.Kind, Name: r.Name, UID: r.UID}
		}
	}
	_, mirror := pod.Annotations["kubernetes.io/config.mirror"]
	s.Static = mirror || s.Owner.Kind == "Node"
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			s.Ready = c.Status == "True"
		}
	}
	for i, c := range o.Spec.Containers {
		s.bearer = s.bearer || c.bears(o.Spec.Volumes)
		s.containers["/spec/containers/"+strconv.Itoa(i)] = c.Name
	}
	for i, c := range o.Spec.InitContainers {
		s.containers["/spec/initContainers/"+strconv.Itoa(i)] = c.Name
	}
	return s, nil
}
