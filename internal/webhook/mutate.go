package webhook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A ServiceAccount is who a pod runs as.
type ServiceAccount struct {
	Namespace   string
	Name        string
	Annotations map[string]string // those of azure.workload.identity/ suffice
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
	return &Denial{Code: http.StatusBadRequest, Message: truncate(fmt.Sprintf(format, args...), 1024)}
}

// Mutate returns what a pod that runs as sa needs to have its identity. It
// looks at nothing but its arguments. Applied to its own result it changes
// nothing. Every error is a *Denial.
func Mutate(pod Pod, sa ServiceAccount, cfg Config) (Result, error) {
	if err := refuseProxy(pod); err != nil {
		return Result{}, err
	}
	expiration, err := tokenExpiration(pod, sa)
	if err != nil {
		return Result{}, err
	}
	env := environment(sa, cfg)
	volume := volumeName(pod, cfg)

	var res Result
	skip := skipped(pod)
	for _, c := range pod.containers {
		if skip[c.name] {
			continue
		}
		var missing []any
		for _, v := range env {
			if v.Value != "" && c.env.index(v.Name) < 0 {
				missing = append(missing, v)
			}
		}
		res.Patch = append(res.Patch, c.env.add(missing...)...)
		ops, err := mount(c, volume, cfg)
		if err != nil {
			return Result{}, err
		}
		res.Patch = append(res.Patch, ops...)
	}
	ops, err := project(pod, volume, expiration, cfg)
	if err != nil {
		return Result{}, err
	}
	res.Patch = append(res.Patch, ops...)
	res.Warnings = warnings(pod, sa, cfg, skip)
	return res, nil
}

// envVar is an entry of a container's env; the order of the fields is the one
// that the API server uses.
type envVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// environment returns the variables in the order in which they are added. One
// with an empty value is left out.
func environment(sa ServiceAccount, cfg Config) []envVar {
	return []envVar{
		{workloadidentity.EnvClientID, sa.Annotations[workloadidentity.AnnotationClientID]},
		{workloadidentity.EnvTenantID, tenant(sa, cfg)},
		{workloadidentity.EnvFederatedTokenFile, path.Join(cfg.mountPath(), cfg.tokenPath())},
		{workloadidentity.EnvAuthorityHost, cfg.AuthorityHost},
	}
}

func tenant(sa ServiceAccount, cfg Config) string {
	if t, ok := sa.Annotations[workloadidentity.AnnotationTenantID]; ok {
		return t
	}
	return cfg.TenantID
}

// volumeName is unique per pod name in the v1.6 layout, so that no manifest
// names the volume by accident.
func volumeName(pod Pod, cfg Config) string {
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

// mount mounts the volume in a container. A mount of the same name elsewhere
// is moved; another volume at the same path is a conflict that the API server
// would report without the reason.
func mount(c container, volume string, cfg Config) ([]Operation, error) {
	want := map[string]any{"name": volume, "mountPath": cfg.mountPath(), "readOnly": true}
	for _, m := range c.mounts.items {
		at, _ := m["mountPath"].(string)
		if m["name"] != volume && path.Clean(at) == cfg.mountPath() {
			return nil, deny("container %q mounts volume %q at %s, where the workload identity token has to be: mount it elsewhere, or leave the container out with the pod annotation %s",
				c.name, m["name"], at, workloadidentity.AnnotationSkipContainers)
		}
		if len(m) == len(want) && covers(m, want) {
			return nil, nil
		}
	}
	if i := c.mounts.index(volume); i >= 0 {
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
	want := map[string]any{
		"name":      volume,
		"projected": map[string]any{"sources": []any{map[string]any{"serviceAccountToken": token}}},
	}
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

// refuseProxy refuses a pod that needs the token proxy: without it the pod
// would start and reach the node's metadata service, which may answer with
// the token of another identity. A warning would come too late.
func refuseProxy(pod Pod) error {
	v, ok := pod.Annotations[workloadidentity.AnnotationInjectProxySidecar]
	if !ok || v == "" || strings.EqualFold(v, "false") {
		return nil
	}
	return deny("annotation %s asks for the token proxy sidecar, which this release does not inject; without it the pod's calls to 169.254.169.254 would reach the node's metadata service and perhaps return the token of another identity. Remove the annotation and let the Azure SDK use the projected token (DefaultAzureCredential or WorkloadIdentityCredential)",
		workloadidentity.AnnotationInjectProxySidecar)
}
