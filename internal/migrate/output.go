package migrate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	syaml "sigs.k8s.io/yaml"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federated"
)

// unmarshal reads JSON as the API machinery does: whole numbers stay such.
func unmarshal(raw []byte, into *map[string]any) error { return yaml.Unmarshal(raw, into) }

// WriteJSON writes the whole plan.
func (p Plan) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(p)
}

// WriteText writes the plan for people: a unified diff of every object, what is
// made in Azure, and what is left.
func (p Plan) WriteText(w io.Writer) error {
	var b bytes.Buffer
	for _, c := range p.Changes {
		b.WriteString(c.diff())
	}
	if len(p.Credentials) > 0 {
		fmt.Fprintf(&b, "\nfederated credentials of %s\n", p.Issuer)
	}
	for _, c := range p.Credentials {
		fmt.Fprintf(&b, "+ %s\n    of %s, for %s\n", c.Name, describe(c.Parent), c.Subject)
	}
	if len(p.Credentials) > 0 && p.Federation == FederationController {
		b.WriteString("  (made by the federation controller for the FederatedIdentity objects)\n")
	}
	if len(p.Workloads) > 0 {
		b.WriteString("\nworkloads\n")
	}
	for _, m := range p.Workloads {
		var ids []string
		for _, id := range m.Identities {
			ids = append(ids, id.AzureIdentity+" ("+id.ClientID+")")
		}
		fmt.Fprintf(&b, "* %s: %s\n    as %s, service account %s\n", m.Workload, m.Action, strings.Join(ids, " and "), m.ServiceAccount)
		proxy := "without the proxy"
		if m.Proxy {
			proxy = "with the proxy"
		}
		fmt.Fprintf(&b, "    %s: %s\n", proxy, m.ProxyWhy)
		for _, n := range m.Notes {
			fmt.Fprintf(&b, "    note: %s\n", n)
		}
	}
	if len(p.Left) > 0 {
		b.WriteString("\nnot migrated\n")
	}
	for _, l := range p.Left {
		fmt.Fprintf(&b, "- %s: %s\n    %s\n", l.Workload, l.Reason, l.Text)
		if l.WayOut != "" {
			fmt.Fprintf(&b, "    %s\n", l.WayOut)
		}
	}
	if len(p.Workloads)+len(p.Left) == 0 {
		b.WriteString("no workload here has to do with Pod Identity\n")
	}
	_, err := w.Write(bytes.TrimPrefix(b.Bytes(), []byte("\n")))
	return err
}

// diff is the unified diff of an object as YAML.
func (c Change) diff() string {
	name := func(o *unstructured.Unstructured) string {
		if o == nil {
			return "/dev/null"
		}
		return strings.ToLower(c.Object.Kind) + "/" + c.Object.Namespace + "/" + c.Object.Name
	}
	text := string(diff.Diff(name(c.Before), toYAML(c.Before), name(c.After), toYAML(c.After)))
	_, text, _ = strings.Cut(text, "\n") // "diff A B"
	if c.Action == ActionRecreate {
		text = "# deleted and made again: its work starts anew\n" + text
	}
	return text
}

// toYAML is what a person sees of an object: without what the server manages.
func toYAML(o *unstructured.Unstructured) []byte {
	if o == nil {
		return nil
	}
	text, err := syaml.Marshal(Canonical(o).Object)
	if err != nil {
		return []byte(err.Error() + "\n")
	}
	return text
}

// serverAnnotations are annotations that controllers and the API server count up
// with every change.
func serverAnnotations() []string {
	return []string{"deployment.kubernetes.io/revision", "deprecated.daemonset.template.generation"}
}

// Canonical returns what people write of an object: without status and without
// what the API server and the controllers manage. The names that the API server
// generates for a Job's pods are such too.
func Canonical(o *unstructured.Unstructured) *unstructured.Unstructured {
	c := o.DeepCopy()
	for _, field := range []string{"resourceVersion", "generation", "managedFields", "uid", "creationTimestamp", "selfLink"} {
		unstructured.RemoveNestedField(c.Object, "metadata", field)
	}
	for _, a := range serverAnnotations() {
		unstructured.RemoveNestedField(c.Object, "metadata", "annotations", a)
	}
	unstructured.RemoveNestedField(c.Object, "status")
	if c.GetKind() == KindFederatedIdentity { // the controller marks it whenever it gets to it
		others := slices.DeleteFunc(c.GetFinalizers(), func(f string) bool { return f == lanyard.FinalizerCredential })
		if c.SetFinalizers(others); len(others) == 0 {
			unstructured.RemoveNestedField(c.Object, "metadata", "finalizers")
		}
	}
	if manual, _, _ := unstructured.NestedBool(c.Object, "spec", "manualSelector"); c.GetKind() == "Job" && !manual {
		unstructured.RemoveNestedField(c.Object, "spec", "selector")
		for _, path := range [][]string{{"metadata", "labels"}, {"spec", "template", "metadata", "labels"}} {
			for _, l := range []string{"controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"} {
				unstructured.RemoveNestedField(c.Object, append(slices.Clone(path), l)...)
			}
			dropEmpty(c.Object, path...)
		}
	}
	for _, path := range [][]string{{"metadata", "annotations"}, {"metadata", "labels"}} {
		dropEmpty(c.Object, path...)
	}
	if t, ok := TemplateOf(c); ok && o.GetKind() != "Pod" { // a nil that some server versions write
		if m, ok := t.pod["metadata"].(map[string]any); ok {
			if v, there := m["creationTimestamp"]; there && v == nil {
				delete(m, "creationTimestamp")
			}
		}
	}
	return c
}

func dropEmpty(o map[string]any, path ...string) {
	if m, found, _ := unstructured.NestedMap(o, path...); found && len(m) == 0 {
		unstructured.RemoveNestedField(o, path...)
	}
}

// WriteYAML writes what GitOps needs: service accounts and role bindings, patches
// of workloads, and the federated credentials, as FederatedIdentity objects for
// the controller or else as az commands. Every document is a server-side apply
// configuration and a kustomize patch.
func (p Plan) WriteYAML(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("# Workload Identity instead of Pod Identity. Apply it with\n#   kubectl apply --server-side --force-conflicts --field-manager=lanyard-migrate -f FILE\n# or put it beside the manifests as kustomize patches.\n")
	for _, c := range p.Changes {
		doc := c.document()
		text, err := syaml.Marshal(doc)
		if err != nil {
			return fmt.Errorf("writing %s: %w", c.Object, err)
		}
		b.WriteString("---\n")
		if c.Action == ActionRecreate {
			b.WriteString("# a Job's template never changes: delete the Job first\n")
		}
		b.Write(text)
	}
	for _, c := range p.Credentials {
		if p.Federation != FederationController {
			b.WriteString("---\n" + c.command())
		}
	}
	for _, l := range p.Left {
		fmt.Fprintf(&b, "# not migrated: %s: %s: %s\n", l.Workload, l.Reason, l.Text)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// document is the change as a manifest: the whole of what is made, and otherwise
// the members that change, with what names the object.
func (c Change) document() map[string]any {
	if c.Action != "update" {
		return Canonical(c.After).Object
	}
	doc := runtime.DeepCopyJSON(c.Patch)
	dropNulls(doc)
	doc["apiVersion"], doc["kind"] = c.After.GetAPIVersion(), c.After.GetKind()
	m, _ := doc["metadata"].(map[string]any)
	if m == nil {
		m = map[string]any{}
		doc["metadata"] = m
	}
	m["name"] = c.Object.Name
	if c.Object.Namespace != "" {
		m["namespace"] = c.Object.Namespace
	}
	if role, ok := c.After.Object["roleRef"]; ok { // the API server wants it in every role binding
		doc["roleRef"] = runtime.DeepCopyJSONValue(role)
	}
	return doc
}

// dropNulls keeps nulls, which delete a member, for kustomize; the older spelling
// of the service account only repeats the other.
func dropNulls(m map[string]any) {
	delete(m, "serviceAccount")
	for _, v := range m {
		if inner, ok := v.(map[string]any); ok {
			dropNulls(inner)
		}
	}
}

// command is how az makes the credential, as a comment.
func (c NewCredential) command() string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	if id, err := azure.ParseResourceID(c.Parent.ResourceID); c.Parent.Kind == federated.ManagedIdentity && err == nil {
		return fmt.Sprintf("# az identity federated-credential create --name %s --identity-name %s --resource-group %s --subscription %s \\\n#   --issuer %s --subject %s --audiences %s\n",
			quote(c.Name), quote(id.Name()), quote(id.ResourceGroup), quote(id.SubscriptionID), quote(c.Issuer), quote(c.Subject), quote(c.Audience))
	}
	body, err := json.Marshal(map[string]any{"name": c.Name, "issuer": c.Issuer, "subject": c.Subject, "audiences": []string{c.Audience}})
	if err != nil {
		body = []byte("{}")
	}
	return fmt.Sprintf("# az ad app federated-credential create --id %s --parameters %s\n", quote(c.Parent.ClientID), quote(string(body)))
}

// FederatedIdentity is the credential as an object of the federation controller.
func (c NewCredential) FederatedIdentity() *unstructured.Unstructured {
	spec := map[string]any{"serviceAccountName": c.ServiceAccount}
	if c.Parent.Kind == federated.ManagedIdentity && c.Parent.ResourceID != "" {
		spec["resourceID"] = c.Parent.ResourceID
	} else {
		spec["clientID"] = c.Parent.ClientID
	}
	if c.Parent.TenantID != "" {
		spec["tenantID"] = c.Parent.TenantID
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "lanyard.id/v1alpha1", "kind": KindFederatedIdentity,
		"metadata": map[string]any{"namespace": c.Namespace, "name": c.ServiceAccount + "-" + digest(strings.ToLower(c.Parent.ClientID))},
		"spec":     spec,
	}}
}

// ServerManaged returns the annotations of an object that the API server and the
// controllers count up.
func ServerManaged(o *unstructured.Unstructured) map[string]string {
	found := map[string]string{}
	for _, name := range serverAnnotations() {
		if v, ok := o.GetAnnotations()[name]; ok {
			found[name] = v
		}
	}
	return found
}
