package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A Pod is the part of a pod that the mutation looks at, with the positions of
// its lists in the raw object. The zero Pod has nothing.
type Pod struct {
	Name           string
	GenerateName   string // without it and Name, the volume is named after the empty name
	Labels         map[string]string
	Annotations    map[string]string
	ServiceAccount string // never empty after ParsePod: "default" if the pod names none

	volumes    list
	containers []container // init containers first, as they start
}

// container is one element of spec.containers or spec.initContainers.
type container struct {
	path   string // JSON pointer of the container
	name   string
	env    list
	mounts list
}

// list is a list of named objects in the raw pod.
type list struct {
	path    string
	present bool // false: the member is absent or null
	items   []map[string]any
}

// ParsePod reads a pod as the API server encodes it. Members that it does not
// know may have any form.
func ParsePod(raw []byte) (Pod, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return Pod{}, fmt.Errorf("decoding the pod: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Pod{}, errors.New("decoding the pod: data after the object")
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
		volumes:        r.list(spec, "volumes", "/spec/volumes"),
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default"
	}
	for _, group := range []string{"initContainers", "containers"} {
		for i, c := range r.list(spec, group, "/spec/"+group).items {
			path := "/spec/" + group + "/" + strconv.Itoa(i)
			p.containers = append(p.containers, container{
				path:   path,
				name:   r.text(c, "name", path+"/name"),
				env:    r.list(c, "env", path+"/env"),
				mounts: r.list(c, "volumeMounts", path+"/volumeMounts"),
			})
		}
	}
	return p, r.err
}

// Labelled reports whether the pod asks for a workload identity.
func (p Pod) Labelled() bool { return p.Labels[workloadidentity.LabelUse] == "true" }

// display is the pod's name for people: a pod of a controller has only a prefix yet.
func (p Pod) display() string {
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

// index returns the position of the first item with that name, or -1.
func (l list) index(name string) int {
	for i, o := range l.items {
		if o["name"] == name {
			return i
		}
	}
	return -1
}

// at is the JSON pointer of item i.
func (l list) at(i int) string { return l.path + "/" + strconv.Itoa(i) }

// add returns the operations that append items to the list.
func (l list) add(items ...any) []Operation {
	if len(items) == 0 {
		return nil
	}
	if !l.present {
		return []Operation{{Op: "add", Path: l.path, Value: items}}
	}
	ops := make([]Operation, 0, len(items))
	for _, item := range items {
		ops = append(ops, Operation{Op: "add", Path: l.path + "/-", Value: item})
	}
	return ops
}

// An Operation is one step of a JSON patch (RFC 6902).
type Operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value"`
}
