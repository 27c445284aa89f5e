// Package charts renders Lanyard's Helm charts with Helm's own library, and
// writes the files that are made of them:
//
//	deploy/crds, deploy/manifests/access.yaml ── Copies ──> files of the charts
//	<chart>/values.yaml ─────────────────────── Readme ──> <chart>/README.md
//	<chart> ── Render ──────────────────────── Plain ───> deploy/manifests/{mic,nmi,webhook,...}.yaml
//
// It is a module of its own: Helm needs a hundred modules that no program of
// Lanyard links.
package charts

//go:generate go run ./generate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// The charts: each lies in a directory of its name in this package's.
const (
	PodIdentity      = "aad-pod-identity"
	WorkloadIdentity = "workload-identity-webhook"
)

// All lists the charts.
func All() []string { return []string{PodIdentity, WorkloadIdentity} }

// kubernetes is the version that charts are rendered for.
const kubernetes = "v1.37.0"

// A Release is what "helm template" is asked for.
type Release struct {
	Name      string // empty means the chart's name
	Namespace string // empty means default
	Values    map[string]any
	Upgrade   bool
}

// Load reads the chart in a directory.
func Load(dir string) (*chart.Chart, error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("loading the chart in %s: %w", dir, err)
	}
	return c, nil
}

// Render renders a chart as "helm template" does: without a cluster. The
// release's Manifest has the objects in the order of their installation.
func Render(ctx context.Context, c *chart.Chart, r Release) (*release.Release, error) {
	i := action.NewInstall(action.NewConfiguration())
	i.DryRunStrategy = action.DryRunClient
	i.ReleaseName, i.Namespace, i.IsUpgrade = r.Name, r.Namespace, r.Upgrade
	if i.ReleaseName == "" {
		i.ReleaseName = c.Name()
	}
	if i.Namespace == "" {
		i.Namespace = "default"
	}
	// Without a cluster Helm takes the version of the Kubernetes modules that it finds linked, or an ancient one.
	i.KubeVersion = &common.KubeVersion{Version: kubernetes, Major: "1", Minor: "37"}
	made, err := i.RunWithContext(ctx, c, r.Values)
	if err != nil {
		return nil, err
	}
	rendered, ok := made.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("helm made a release of the unknown kind %T", made)
	}
	return rendered, nil
}

// Objects parses a YAML stream; documents without content are left out.
func Objects(stream string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	d := yaml.NewYAMLOrJSONDecoder(strings.NewReader(stream), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading document %d: %w", len(objects), err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}
