package diagnosis

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

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
}

// An Owner is the controller that a pod names. Who makes a pod can name any:
// it says which pods belong together, never which pod is evicted.
type Owner struct{ Group, Kind, Name, UID string }

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
			Containers, InitContainers []struct{ Name string }
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
		s.containers["/spec/containers/"+strconv.Itoa(i)] = c.Name
	}
	for i, c := range o.Spec.InitContainers {
		s.containers["/spec/initContainers/"+strconv.Itoa(i)] = c.Name
	}
	return s, nil
}
