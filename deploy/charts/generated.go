package charts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	chart "helm.sh/helm/v4/pkg/chart/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/deploy"
)

// Copies returns the files of the chart that are copies of files of deploy, by
// their path below the chart: Helm reads no file outside of a chart.
func Copies() (map[string][]byte, error) {
	files := map[string][]byte{}
	crds, err := fs.Glob(deploy.FS, "crds/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("listing the CRDs: %w", err)
	}
	for _, name := range crds {
		if files[name], err = fs.ReadFile(deploy.FS, name); err != nil {
			return nil, fmt.Errorf("reading a CRD: %w", err)
		}
	}
	access, err := fs.ReadFile(deploy.FS, "manifests/access.yaml")
	if errors.Is(err, fs.ErrNotExist) {
		return files, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the admission policy: %w", err)
	}
	files["files/access.yaml"] = access
	return files, nil
}

// WriteCopies writes the files of Copies into the chart in dir, and removes
// CRDs that are no more.
func WriteCopies(dir string) error {
	files, err := Copies()
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "crds", "*"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if _, ok := files["crds/"+filepath.Base(name)]; !ok {
			if err := os.Remove(name); err != nil {
				return fmt.Errorf("removing an old CRD: %w", err)
			}
		}
	}
	for name, content := range files {
		if err := Write(filepath.Join(dir, filepath.FromSlash(name)), content); err != nil {
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

// plain says what of the chart each plain manifest holds.
var plain = []struct {
	file, about, namespace string
	values                 map[string]any
	components             []string
}{
	{
		"mic.yaml", `The managed identity controller of Pod Identity, with the object names of Pod
Identity v1. It acts as the principal in the Secret aadpodidentity-admin-secret
of the same namespace.`, "default",
		map[string]any{"mic": map[string]any{"existingSecret": "aadpodidentity-admin-secret"}}, []string{"mic"},
	},
	{
		"mic-azurejson.yaml", `The same as mic.yaml, but it acts as whom the nodes' azure.json says, which only
root may read.`, "default",
		nil, []string{"mic"},
	},
	{
		"mic-exception.yaml", `Needed only where mic acts as a managed identity of its machine (USE_MSI): it
then asks the metadata service itself. Every pod of the namespace with one of
these labels gets the same: guard who may create pods here. AKS labels its own
add-ons in kube-system.`, "default",
		nil, []string{"exception"},
	},
	{
		"nmi.yaml", `The node agent of Pod Identity, with the object names of Pod Identity v1.`, "default",
		nil, []string{"nmi"},
	},
	{
		"managed.yaml", `Pod Identity's managed mode: only the node agent, for identities that are on the
machines already.`, "kube-system",
		map[string]any{"operationMode": "managed"}, []string{"nmi"},
	},
}

// Plain renders the plain manifests from the chart: by file name, with the
// object names and labels of v1's plain manifests in place of those of its
// chart.
func Plain(ctx context.Context, c *chart.Chart) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, p := range plain {
		rendered, err := Render(ctx, c, Release{Namespace: p.namespace, Values: p.values})
		if err != nil {
			return nil, fmt.Errorf("rendering %s: %w", p.file, err)
		}
		objects, err := Objects(rendered.Manifest)
		if err != nil {
			return nil, err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "# %s\n# Generated from deploy/charts/%s (make generate).\n", strings.ReplaceAll(p.about, "\n", "\n# "), Dir)
		first := true
		for _, o := range objects {
			component := componentOf(o)
			if !slices.Contains(p.components, component) {
				continue
			}
			rename(o, component)
			text, err := yaml.Marshal(o.Object)
			if err != nil {
				return nil, fmt.Errorf("writing %s: %w", p.file, err)
			}
			if !first {
				b.WriteString("---\n")
			}
			first = false
			b.Write(text)
		}
		files[p.file] = []byte(b.String())
	}
	return files, nil
}

func componentOf(o *unstructured.Unstructured) string {
	if o.GetKind() == "AzurePodIdentityException" {
		return "exception"
	}
	return o.GetLabels()["app.kubernetes.io/component"]
}

// rename gives an object of the chart the name and labels that v1's plain
// manifests have.
func rename(o *unstructured.Unstructured, component string) {
	name := map[string]string{
		"ServiceAccount":            "aad-pod-id-" + component + "-service-account",
		"ClusterRole":               "aad-pod-id-" + component + "-role",
		"ClusterRoleBinding":        "aad-pod-id-" + component + "-binding",
		"Role":                      "aad-pod-id-" + strings.TrimPrefix(o.GetName(), "aad-pod-identity-"),
		"RoleBinding":               "aad-pod-id-" + strings.TrimPrefix(o.GetName(), "aad-pod-identity-"),
		"Deployment":                component,
		"DaemonSet":                 component,
		"AzurePodIdentityException": strings.Replace(o.GetName(), "mic", "mic-exception", 1),
	}
	labels := map[string]string{"component": component, "k8s-app": "aad-pod-id"}
	selector := map[string]any{"app": component, "component": component}
	switch {
	case o.GetKind() == "ClusterRoleBinding":
		labels = map[string]string{"k8s-app": name["ClusterRoleBinding"]}
	case component == "exception":
		labels = nil
		o.Object["spec"].(map[string]any)["podLabels"] = exceptionLabels(o)
	case component == "nmi":
		labels["tier"] = "node"
		selector = map[string]any{"component": component, "tier": "node"}
	}
	if n := name[o.GetKind()]; n != "" {
		o.SetName(n)
	}
	o.SetLabels(labels)
	if ref, ok := o.Object["roleRef"].(map[string]any); ok {
		if ref["kind"] == "ClusterRole" {
			ref["name"] = name["ClusterRole"]
		} else {
			ref["name"] = o.GetName()
		}
		for _, s := range o.Object["subjects"].([]any) {
			s.(map[string]any)["name"] = name["ServiceAccount"]
		}
	}
	relabel(o.Object["spec"], selector, name["ServiceAccount"])
}

// exceptionLabels are those of v1's plain manifests: without the chart's own.
func exceptionLabels(o *unstructured.Unstructured) map[string]any {
	labels, _, _ := unstructured.NestedMap(o.Object, "spec", "podLabels")
	delete(labels, "app.kubernetes.io/component")
	return labels
}

// relabel replaces every selector, the pods' labels and their service account.
func relabel(node any, selector map[string]any, account string) {
	switch n := node.(type) {
	case []any:
		for _, e := range n {
			relabel(e, selector, account)
		}
	case map[string]any:
		for key, value := range n {
			switch key {
			case "matchLabels", "labels":
				n[key] = selector
			case "serviceAccountName":
				n[key] = account
			default:
				relabel(value, selector, account)
			}
		}
	}
}

// ManifestPath is where the plain manifest of that name lies, seen from this
// package's directory.
func ManifestPath(name string) string { return path.Join("../manifests", name) }
