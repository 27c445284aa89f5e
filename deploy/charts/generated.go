package charts

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	chart "helm.sh/helm/v4/pkg/chart/v2"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy"
)

// Copies returns the files of a chart that are copies of files of deploy, by
// their path below the chart: Helm reads no file outside of a chart.
func Copies(chart string) (map[string][]byte, error) {
	// Helm installs what is in crds and never upgrades it; in files it is for a template.
	part, manifest, crds := deploy.PodIdentity, "access.yaml", "crds/"
	if chart == WorkloadIdentity {
		part, manifest, crds = deploy.Federation, "federation.yaml", "files/crds/"
	}
	from, err := deploy.CRDNames(part)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, name := range append(from, "manifests/"+manifest) {
		text, err := fs.ReadFile(deploy.FS, name)
		if err != nil {
			return nil, fmt.Errorf("copying for %s: %w", chart, err)
		}
		to := strings.Replace(name, "manifests/", "files/", 1)
		files[strings.Replace(to, "crds/", crds, 1)] = text
	}
	return files, nil
}

// WriteCopies writes the files of Copies into a chart, and removes CRDs that are
// no more.
func WriteCopies(chart string) error {
	files, err := Copies(chart)
	if err != nil {
		return err
	}
	for _, dir := range []string{"crds", "files/crds"} {
		old, err := filepath.Glob(filepath.Join(chart, dir, "*"))
		if err != nil {
			return err
		}
		for _, name := range old {
			if _, ok := files[path.Join(dir, filepath.Base(name))]; ok {
				continue
			}
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("removing an old CRD: %w", err)
			}
		}
	}
	for name, content := range files {
		if err := Write(filepath.Join(chart, filepath.FromSlash(name)), content); err != nil {
			return err
		}
	}
	return nil
}

// Write writes a file that others read.
func Write(name string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}

// plain says what of which chart each plain manifest holds.
var plain = []struct {
	chart, file      string // the file's path below deploy
	about, namespace string
	values           map[string]any
	components       []string // of Pod Identity
}{
	{
		PodIdentity, "manifests/mic.yaml", `The managed identity controller of Pod Identity, with the object names of Pod
Identity v1. It acts as the principal in the Secret aadpodidentity-admin-secret
of the same namespace.`, "default",
		map[string]any{"mic": map[string]any{"existingSecret": "aadpodidentity-admin-secret"}}, []string{"mic"},
	},
	{
		PodIdentity, "manifests/mic-azurejson.yaml", `The same as mic.yaml, but it acts as whom the nodes' azure.json says, which only
root may read.`, "default",
		nil, []string{"mic"},
	},
	{
		PodIdentity, "manifests/mic-exception.yaml", `Needed only where mic acts as a managed identity of its machine (USE_MSI): it
then asks the metadata service itself. Every pod of the namespace with one of
these labels gets the same: guard who may create pods here. AKS labels its own
add-ons in kube-system.`, "default",
		nil, []string{"exception"},
	},
	{
		PodIdentity, "manifests/nmi.yaml", `The node agent of Pod Identity, with the object names of Pod Identity v1.`, "default",
		nil, []string{"nmi"},
	},
	{
		PodIdentity, "manifests/managed.yaml", `Pod Identity's managed mode: only the node agent, for identities that are on the
machines already.`, "kube-system",
		map[string]any{"operationMode": "managed"}, []string{"nmi"},
	},
	{WorkloadIdentity, "manifests/webhook.yaml", aboutWebhook, workloadidentity.Namespace, webhookPlaceholders(), nil},
	// The same under the path that azure-workload-identity publishes it at.
	{WorkloadIdentity, "azure-wi-webhook.yaml", aboutWebhook, workloadidentity.Namespace, webhookPlaceholders(), nil},
}

// Plain renders the plain manifests that are made of a chart: by their path
// below deploy, with the object names and labels of upstream's plain manifests
// in place of those of its chart.
func Plain(ctx context.Context, c *chart.Chart) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, p := range plain {
		if p.chart != c.Name() {
			continue
		}
		rendered, err := Render(ctx, c, Release{Namespace: p.namespace, Values: p.values})
		if err != nil {
			return nil, fmt.Errorf("rendering %s: %w", p.file, err)
		}
		objects, err := Objects(rendered.Manifest)
		if err != nil {
			return nil, err
		}
		if p.chart == PodIdentity {
			objects = plainPodIdentity(objects, p.components)
		} else {
			objects = plainWorkloadIdentity(objects)
		}
		var b strings.Builder
		fmt.Fprintf(&b, "# %s\n# Generated from deploy/charts/%s (make generate).\n", strings.ReplaceAll(p.about, "\n", "\n# "), p.chart)
		for i, o := range objects {
			text, err := yaml.Marshal(o.Object)
			if err != nil {
				return nil, fmt.Errorf("writing %s: %w", p.file, err)
			}
			if i > 0 {
				b.WriteString("---\n")
			}
			b.Write(text)
		}
		files[p.file] = []byte(b.String())
	}
	return files, nil
}

// PlainPath is where a plain manifest lies, seen from this package's directory.
func PlainPath(file string) string { return path.Join("..", file) }
