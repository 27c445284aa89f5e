package mutation

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/rawjson"
)

// A Pod is the part of a pod that the mutation looks at, with the positions of
// its lists in the raw object. The zero Pod has nothing.
type Pod struct {
	Name           string
	GenerateName   string // without it and Name, the volume is named after the empty name
	Labels         map[string]string
	Annotations    map[string]string
	ServiceAccount string // never empty after ParsePod: "default" if the pod names none

	metadata     bool // there is such a member
	volumes      list
	inits, mains list
	containers   []container // of inits, then mains, as they start
	hostNetwork  bool
	windows      bool
}

// container is one element of spec.containers or spec.initContainers.
type container struct {
	path   string // JSON pointer of the container
	name   string
	env    list
	mounts list

	runAsUser string // decimal, the pod's if it has none; empty if neither says
	ports     []any
}

// podShape is what is read of a pod. Lists that the patch touches are read
// whole, so that an entry can be compared.
var podShape = rawjson.Shape{
	"metadata": {"name": nil, "generateName": nil, "labels": nil, "annotations": nil},
	"spec": {
		"serviceAccountName": nil, "volumes": nil, "hostNetwork": nil, "os": nil, "nodeSelector": nil, "securityContext": nil,
		"initContainers": containerShape, "containers": containerShape,
	},
}

var containerShape = rawjson.Shape{"name": nil, "env": nil, "volumeMounts": nil, "securityContext": nil, "ports": nil}

// ParsePod reads a pod as the API server encodes it. Members that it does not
// know may have any form.
func ParsePod(raw []byte) (Pod, error) {
	tree, err := rawjson.Parse(raw, podShape)
	if err != nil {
		return Pod{}, fmt.Errorf("decoding the pod: %w", err)
	}
	root, ok := tree.(map[string]any)
	if !ok {
		return Pod{}, errors.New("decoding the pod: not an object")
	}
	r := &reader{}
	meta := r.object(root, "metadata", "metadata")
	spec := r.object(root, "spec", "spec")
	if root["spec"] == nil {
		r.fail("spec", "an object")
	}
	p := Pod{
		Name:           r.text(meta, "name", "metadata.name"),
		GenerateName:   r.text(meta, "generateName", "metadata.generateName"),
		Labels:         r.texts(meta, "labels", "metadata.labels"),
		Annotations:    r.texts(meta, "annotations", "metadata.annotations"),
		ServiceAccount: r.text(spec, "serviceAccountName", "spec.serviceAccountName"),
		metadata:       meta != nil,
		volumes:        r.list(spec, "volumes", "/spec/volumes"),
		inits:          r.list(spec, "initContainers", "/spec/initContainers"),
		mains:          r.list(spec, "containers", "/spec/containers"),
		windows:        windows(spec),
	}
	p.hostNetwork, _ = spec["hostNetwork"].(bool)
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	user := runAsUser(spec)
	for _, group := range []list{p.inits, p.mains} {
		for i, c := range group.items {
			path := group.at(i)
			ports, _ := c["ports"].([]any)
			p.containers = append(p.containers, container{
				path:      path,
				name:      r.text(c, "name", path+"/name"),
				env:       r.list(c, "env", path+"/env"),
				mounts:    r.list(c, "volumeMounts", path+"/volumeMounts"),
				runAsUser: cmp.Or(runAsUser(c), user),
				ports:     ports,
			})
		}
	}
	return p, r.err
}

// Labelled reports whether the pod asks for a workload identity.
func (p Pod) Labelled() bool { return p.Labels[workloadidentity.LabelUse] == "true" }

// runAsUser is the user in the securityContext of a pod or a container.
func runAsUser(in map[string]any) string {
	context, _ := in["securityContext"].(map[string]any)
	user, _ := context["runAsUser"].(json.Number)
	return user.String()
}

// windows reports whether a pod says that it runs on Windows.
func windows(spec map[string]any) bool {
	os, _ := spec["os"].(map[string]any)
	selector, _ := spec["nodeSelector"].(map[string]any)
	return os["name"] == "windows" || selector["kubernetes.io/os"] == "windows"
}

// has reports whether the pod has a container or init container of that name.
func (p Pod) has(name string) bool {
	return slices.ContainsFunc(p.containers, func(c container) bool { return c.name == name })
}

// listens reports whether the container names a TCP port.
func (c container) listens(port int) bool {
	return slices.ContainsFunc(c.ports, func(o any) bool {
		p, _ := o.(map[string]any)
		protocol, _ := p["protocol"].(string)
		number, _ := p["containerPort"].(json.Number)
		return number.String() == strconv.Itoa(port) && (protocol == "" || protocol == "TCP")
	})
}

// Display is the pod's name for people: a pod of a controller has only a prefix yet.
func (p Pod) Display() string {
	if p.Name != "" {
		return p.Name
	}
	return p.GenerateName
}

// reader reads members of a decoded object and remembers the first of a wrong
// form. A null is an absent member.
type reader struct{ err error }

func (r *reader) fail(where, want string) {
	if r.err == nil {
		r.err = fmt.Errorf("decoding the pod: %s is not %s", where, want)
	}
}

func (r *reader) object(in map[string]any, member, where string) map[string]any {
	v, ok := in[member].(map[string]any)
	if !ok && in[member] != nil {
		r.fail(where, "an object")
	}
	return v
}

func (r *reader) text(in map[string]any, member, where string) string {
	v, ok := in[member].(string)
	if !ok && in[member] != nil {
		r.fail(where, "a string")
	}
	return v
}

func (r *reader) texts(in map[string]any, member, where string) map[string]string {
	all := r.object(in, member, where)
	if all == nil {
		return nil
	}
	out := make(map[string]string, len(all))
	for k := range all {
		out[k] = r.text(all, k, where+"["+strconv.Quote(k)+"]")
	}
	return out
}

func (r *reader) list(in map[string]any, member, path string) list {
	l := list{path: path}
	v, ok := in[member].([]any)
	if !ok {
		if in[member] != nil {
			r.fail(path, "a list")
		}
		return l
	}
	l.present = true
	for i, e := range v {
		o, ok := e.(map[string]any)
		if !ok {
			r.fail(path+"/"+strconv.Itoa(i), "an object")
		}
		l.items = append(l.items, o)
	}
	return l
}
