package mutation

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A ServiceAccount is who a pod runs as.
type ServiceAccount struct {
	Namespace   string
	Name        string
	Labels      map[string]string // those of azure.workload.identity/ suffice
	Annotations map[string]string // likewise
}

// A Result is what becomes of a pod.
type Result struct {
	Patch    []Operation // empty: the pod stays as it is
	Warnings []string    // for the person who creates the pod
}

// A Denial is a refusal that the user can act on.
type Denial struct {
	Code    int // an HTTP status
	Message string
}

func (d *Denial) Error() string { return d.Message }

func deny(format string, args ...any) error {
	return &Denial{Code: 400, Message: truncate(fmt.Sprintf(format, args...), 1024)}
}

// Mutate returns what a pod that runs as sa needs to have its identity. It
// looks at nothing but its arguments. Applied to its own result it changes
// nothing. Every error is a *Denial, unless JSON cannot be encoded.
func Mutate(pod Pod, sa ServiceAccount, cfg Config) (Result, error) {
	x, err := proxyOf(pod, cfg)
	if err != nil {
		return Result{}, err
	}
	expiration, err := tokenExpiration(pod, sa)
	if err != nil {
		return Result{}, err
	}
	cfg = cfg.of(pod)
	p := &plan{
		cfg: cfg, env: environment(sa, cfg), volume: VolumeName(pod, cfg),
		before: readRecord(pod), after: record{ServiceAccount: sa.Name},
	}
	var res Result
	skip := skipped(pod)
	for _, c := range pod.containers {
		ops, err := p.container(c, skip[c.name] && !x.ours(c.name))
		if err != nil {
			return Result{}, err
		}
		res.Patch = append(res.Patch, ops...)
	}
	for _, step := range []func() ([]Operation, error){
		func() ([]Operation, error) { return project(pod, p.volume, expiration, cfg) },
		func() ([]Operation, error) { return p.inject(pod, x) },
		func() ([]Operation, error) { return p.annotate(pod) },
	} {
		ops, err := step()
		if err != nil {
			return Result{}, err
		}
		res.Patch = append(res.Patch, ops...)
	}
	res.Warnings = warnings(pod, sa, cfg, p.before, skip, x)
	return res, nil
}

// plan is what every container of a pod gets.
type plan struct {
	cfg           Config
	env           []envVar // the first ofAccount are the service account's
	volume        string
	before, after record
}

// container gives one container its variables and its mount.
func (p *plan) container(c container, skip bool) ([]Operation, error) {
	var ops, gone []Operation
	var missing []any
	for n, v := range p.env {
		i := c.env.index(v.Name)
		mine := i >= 0 && n < ofAccount && p.before.wrote(c.name, c.env.items[i])
		switch {
		case skip:
			// What an earlier pass wrote before the container was left alone
			// counts as the user's, unless it is still right.
			if mine && c.env.items[i]["value"] == v.Value {
				p.after.note(c.name, v)
			}
			continue
		case i < 0 && v.Value != "":
			missing = append(missing, v)
		case mine && v.Value == "":
			gone = append(gone, Operation{Op: "remove", Path: c.env.at(i)})
			continue
		case mine && c.env.items[i]["value"] != v.Value:
			ops = append(ops, Operation{Op: "replace", Path: c.env.at(i) + "/value", Value: v.Value})
		case !mine:
			continue
		}
		if n < ofAccount {
			p.after.note(c.name, v)
		}
	}
	if skip {
		return nil, nil
	}
	// From the end, so that the positions hold.
	slices.SortFunc(gone, func(a, b Operation) int { return cmp.Or(len(b.Path)-len(a.Path), cmp.Compare(b.Path, a.Path)) })
	ops = append(ops, gone...)
	ops = append(ops, c.env.add(missing...)...)
	mounts, err := p.mount(c)
	return append(ops, mounts...), err
}

// envVar is an entry of a container's env; the order of the fields is the one
// that the API server uses.
type envVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// ofAccount is how many variables come from the service account.
const ofAccount = 2

// environment returns the variables in the order in which they are added. One
// with an empty value is left out.
func environment(sa ServiceAccount, cfg Config) []envVar {
	return append([]envVar{
		{workloadidentity.EnvClientID, sa.Annotations[workloadidentity.AnnotationClientID]},
		{workloadidentity.EnvTenantID, tenant(sa, cfg)},
		{workloadidentity.EnvFederatedTokenFile, cfg.tokenFile()},
		{workloadidentity.EnvAuthorityHost, cfg.AuthorityHost},
	}, cfg.Endpoint.environment()...)
}

func tenant(sa ServiceAccount, cfg Config) string {
	if t, ok := sa.Annotations[workloadidentity.AnnotationTenantID]; ok {
		return t
	}
	return cfg.TenantID
}

// VolumeName is the name of the volume with the token, unique per
// pod name in the v1.6 layout, so that no manifest names it by accident.
func VolumeName(pod Pod, cfg Config) string {
	if cfg.legacy() {
		return workloadidentity.LegacyVolume
	}
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + " (prefix)"
	}
	sum := sha256.Sum256([]byte(name))
	return workloadidentity.VolumePrefix + hex.EncodeToString(sum[:])[:workloadidentity.VolumeHashLength]
}

// volumeMount is an entry of a container's volumeMounts.
type volumeMount struct {
	Name      string `json:"name"`
	MountPath string `json:"mountPath"`
	ReadOnly  bool   `json:"readOnly"`
}

func (p *plan) mounted() volumeMount {
	return volumeMount{Name: p.volume, MountPath: p.cfg.mountPath(), ReadOnly: true}
}

// mount mounts the volume in a container. A mount of the same name elsewhere
// is moved; another volume at the same path is a conflict that the API server
// would report without the reason.
func (p *plan) mount(c container) ([]Operation, error) {
	want := p.mounted()
	for _, m := range c.mounts.items {
		at, _ := m["mountPath"].(string)
		if m["name"] != want.Name && path.Clean(at) == want.MountPath {
			return nil, deny("container %s mounts volume %q at %s, where the workload identity token has to be: mount it elsewhere, or leave the container out with the pod annotation %s",
				quote(c.name), m["name"], at, workloadidentity.AnnotationSkipContainers)
		}
		if len(m) == 3 && m["name"] == want.Name && at == want.MountPath && m["readOnly"] == true {
			return nil, nil
		}
	}
	if i := c.mounts.index(want.Name); i >= 0 {
		return []Operation{{Op: "replace", Path: c.mounts.at(i), Value: want}}, nil
	}
	return c.mounts.add(want), nil
}

// project adds the volume with the token.
func project(pod Pod, volume string, expiration int64, cfg Config) ([]Operation, error) {
	token := map[string]any{
		"path":              cfg.tokenPath(),
		"expirationSeconds": json.Number(strconv.FormatInt(expiration, 10)),
		"audience":          cfg.audience(),
	}
	sources := []any{map[string]any{"serviceAccountToken": token}}
	if ca := cfg.Endpoint.source(); ca != nil {
		sources = append(sources, ca)
	}
	want := map[string]any{"name": volume, "projected": map[string]any{"sources": sources}}
	i := pod.volumes.index(volume)
	switch {
	case i < 0:
		return pod.volumes.add(want), nil
	case covers(pod.volumes.items[i], want):
		return nil, nil
	case cfg.legacy():
		// The name is not reserved in this layout: a manifest may have written
		// the volume itself, perhaps with more in it.
		return updateToken(pod.volumes.items[i], pod.volumes.at(i), token)
	}
	return []Operation{{Op: "replace", Path: pod.volumes.at(i), Value: want}}, nil
}

// updateToken gives the token of an existing projected volume the wanted
// lifetime and audience.
func updateToken(volume map[string]any, at string, token map[string]any) ([]Operation, error) {
	projected, _ := volume["projected"].(map[string]any)
	sources, _ := projected["sources"].([]any)
	for i, s := range sources {
		source, _ := s.(map[string]any)
		have, _ := source["serviceAccountToken"].(map[string]any)
		if have["path"] != token["path"] {
			continue
		}
		var ops []Operation
		for _, member := range []string{"expirationSeconds", "audience"} {
			if have[member] != token[member] {
				ops = append(ops, Operation{Op: "add", Path: at + "/projected/sources/" + strconv.Itoa(i) + "/serviceAccountToken/" + member, Value: token[member]})
			}
		}
		return ops, nil
	}
	return nil, deny("volume %q has no projected service account token with path %q: rename the volume, the name belongs to workload identity", volume["name"], token["path"])
}

// covers reports whether got has everything that want has. The API server adds
// defaults to objects that it returns, never elements to lists.
func covers(got, want any) bool {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return false
		}
		for k := range w {
			if !covers(g[k], w[k]) {
				return false
			}
		}
		return true
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			return false
		}
		for i := range w {
			if !covers(g[i], w[i]) {
				return false
			}
		}
		return true
	}
	return got == want
}
