package charts_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/deploy/charts"
)

// v1Chart is a chart that makes what v1.8.17's made, as far as an upgrade can
// see it: names, selectors and the fields of pods that must go.
const v1Templates = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: aad-pod-identity-COMPONENT, namespace: "{{ .Release.Namespace }}"}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: aad-pod-identity-COMPONENT}
rules:
- {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: ["*"]}
- {apiGroups: [""], resources: [secrets], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: aad-pod-identity-COMPONENT}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: aad-pod-identity-COMPONENT}
subjects: [{kind: ServiceAccount, name: aad-pod-identity-COMPONENT, namespace: "{{ .Release.Namespace }}"}]
---
apiVersion: apps/v1
kind: KIND
metadata:
  name: aad-pod-identity-COMPONENT
  namespace: "{{ .Release.Namespace }}"
  labels: {app.kubernetes.io/component: COMPONENT, app.kubernetes.io/managed-by: Helm}
spec:
  selector:
    matchLabels: {app.kubernetes.io/name: aad-pod-identity, app.kubernetes.io/instance: "{{ .Release.Name }}", app.kubernetes.io/component: COMPONENT}
  template:
    metadata:
      labels: {app.kubernetes.io/name: aad-pod-identity, app.kubernetes.io/instance: "{{ .Release.Name }}", app.kubernetes.io/component: COMPONENT, tier: node, helm.sh/chart: aad-pod-identity-4.1.18}
    spec:
      serviceAccountName: aad-pod-identity-COMPONENT
      hostNetwork: HOST
      volumes:
      - {name: iptableslock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}
      - {name: kubelet-config, hostPath: {path: /etc/default/kubelet}}
      containers:
      - name: COMPONENT
        image: "{{ .Values.image.repository }}/COMPONENT:{{ .Values.COMPONENT.tag }}"
        args: ["--node=$(NODE_NAME)", --kubelet-config=/etc/default/kubelet]
        env: [{name: OLD, value: "1"}]
        securityContext: {runAsUser: 0, capabilities: {drop: [ALL], add: [DAC_READ_SEARCH, NET_ADMIN, NET_RAW]}}
        volumeMounts:
        - {name: iptableslock, mountPath: /run/xtables.lock}
        - {name: kubelet-config, mountPath: /etc/default/kubelet, readOnly: true}
        resources: {limits: {cpu: 200m, memory: 512Mi}, requests: {cpu: 100m, memory: 256Mi}}
---
`

func v1Chart() *chart.Chart {
	part := func(component, kind, host string) string {
		return strings.NewReplacer("COMPONENT", component, "KIND", kind, "HOST", host).Replace(v1Templates)
	}
	exceptions := `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzurePodIdentityException
metadata: {name: mic, namespace: "{{ .Release.Namespace }}"}
spec: {podLabels: {app: mic}}
---
{{- range $name, $i := .Values.azureIdentities }}
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: {{ $name }}, namespace: "{{ $.Release.Namespace }}"}
spec: {type: 0, clientID: {{ $i.clientID }}, resourceID: {{ $i.resourceID }}}
---
{{- end }}
`
	return &chart.Chart{
		Metadata: &chart.Metadata{APIVersion: "v2", Name: "aad-pod-identity", Version: "4.1.18", AppVersion: "v1.8.17"},
		Values: map[string]any{
			"image": map[string]any{"repository": "mcr.microsoft.com/oss/azure/aad-pod-identity"}, "operationMode": "standard", "forceNamespaced": "false",
			"mic": map[string]any{"tag": "v1.8.17"}, "nmi": map[string]any{"tag": "v1.8.17", "probePort": "8085"},
		},
		Templates: []*common.File{
			{Name: "templates/mic.yaml", Data: []byte(part("mic", "Deployment", "false"))},
			{Name: "templates/nmi.yaml", Data: []byte(part("nmi", "DaemonSet", "true"))},
			{Name: "templates/exceptions.yaml", Data: []byte(exceptions)},
		},
	}
}

// v1CRDs are v1's kinds with only the fields that v1 had: what is new is
// dropped by the API server until they are upgraded.
func v1CRDs(t testing.TB) []*unstructured.Unstructured {
	t.Helper()
	var list []*unstructured.Unstructured
	for plural, kind := range map[string]string{
		"azureidentities": "AzureIdentity", "azureidentitybindings": "AzureIdentityBinding",
		"azureassignedidentities": "AzureAssignedIdentity", "azurepodidentityexceptions": "AzurePodIdentityException",
	} {
		fields := map[string]any{}
		for _, name := range []string{"azureIdentity", "selector", "clientID", "resourceID", "tenantID"} {
			fields[name] = map[string]any{"type": "string"}
		}
		fields["type"] = map[string]any{"type": "integer"}
		fields["podLabels"] = map[string]any{"type": "object", "additionalProperties": map[string]any{"type": "string"}}
		list = append(list, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
			"metadata": map[string]any{"name": plural + ".aadpodidentity.k8s.io", "annotations": map[string]any{"api-approved.kubernetes.io": "unapproved"}},
			"spec": map[string]any{
				"group": "aadpodidentity.k8s.io", "scope": "Namespaced",
				"names": map[string]any{"kind": kind, "plural": plural, "singular": strings.ToLower(kind), "listKind": kind + "List"},
				"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{"openAPIV3Schema": map[string]any{
					"type": "object", "properties": map[string]any{"spec": map[string]any{"type": "object", "properties": fields}},
				}}}},
			},
		}})
	}
	return list
}

// Someone who runs v1 upgrades the release, with the values they had.
func TestUpgradeFromPodIdentityV1(t *testing.T) {
	w := newWorld(t, &old, "aad-pod-identity")
	for _, crd := range v1CRDs(t) {
		w.create(crd.Object)
	}
	w.established()
	vals := values(t, `{forceNamespaced: "true", nmi: {probePort: "8086", micNamespace: kube-system}, azureIdentities: {released: {clientID: c, resourceID: r}}}`)
	i := action.NewInstall(w.helm)
	i.ReleaseName, i.Namespace, i.CreateNamespace = release1, w.namespace, true
	i.ServerSideApply, i.WaitStrategy = false, kube.HookOnlyStrategy // as Helm 3 did
	if _, err := i.RunWithContext(t.Context(), v1Chart(), vals); err != nil {
		t.Fatalf("installing v1: %v", err)
	}
	binding := map[string]any{
		"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentityBinding", "metadata": map[string]any{"name": "users-own", "namespace": "default"},
		"spec": map[string]any{"azureIdentity": "users-own", "selector": "app"},
	}
	w.create(binding)
	before, err := w.get("aadpodidentity.k8s.io/v1 AzureIdentityBinding", "default", "users-own")
	if err != nil {
		t.Fatal(err)
	}

	t.Run("reusing the old chart's defaults is refused before anything changes", w.sub(func(w *world) {
		u := action.NewUpgrade(w.helm)
		u.Namespace, u.ReuseValues = w.namespace, true
		if _, err := u.RunWithContext(w.Context(), release1, podIdentity.load(w), nil); err == nil || !contains(err.Error(), "--reset-then-reuse-values") {
			w.Errorf("error %v", err)
		}
	}))
	stop := w.node(program(t, "mic"))
	if err := w.upgrade(podIdentity.load(t), nil); err != nil {
		t.Fatalf("%v; the Job's program said %q", err, stop())
	}
	stop()

	t.Run("users' objects are untouched", w.sub(func(w *world) {
		after, err := w.get("aadpodidentity.k8s.io/v1 AzureIdentityBinding", "default", "users-own")
		if err != nil {
			w.Fatal(err)
		}
		if diff := cmp.Diff(before.Object, after.Object); diff != "" {
			w.Error(diff)
		}
	}))
	t.Run("the release's identity is the same object", w.sub(func(w *world) {
		w.there("aadpodidentity.k8s.io/v1 AzureIdentity", "", "released")
	}))
	t.Run("new fields are kept by the upgraded CRDs", w.sub(func(w *world) {
		o := &unstructured.Unstructured{Object: runtime.DeepCopyJSON(binding)}
		o.SetName("with-time")
		spec := o.Object["spec"].(map[string]any)
		spec["access"], spec["serviceAccountName"] = "OnRequest", "app"
		w.create(o.Object)
		got, err := w.get("aadpodidentity.k8s.io/v1 AzureIdentityBinding", "default", "with-time")
		if err != nil {
			w.Fatal(err)
		}
		if diff := cmp.Diff(spec, got.Object["spec"]); diff != "" {
			w.Error(diff)
		}
	}))
	t.Run("nothing of v1's pods is left", w.sub(func(w *world) {
		w.asRendered(podIdentity, values(w, `{forceNamespaced: "true", nmi: {probePort: "8086"}}`))
	}))
	t.Run("rights", w.sub(func(w *world) { w.rights("aad-pod-identity-mic", "aad-pod-identity-nmi") }))
	t.Run("an upgrade to the same version changes nothing", w.sub(func(w *world) {
		generation := w.workload("DaemonSet", "aad-pod-identity-nmi").GetGeneration()
		stop := w.node(program(w, "mic"))
		if err := w.upgrade(podIdentity.load(w), nil); err != nil {
			w.Fatalf("%v; the Job's program said %q", err, stop())
		}
		stop()
		if now := w.workload("DaemonSet", "aad-pod-identity-nmi").GetGeneration(); now != generation {
			w.Errorf("the DaemonSet's generation went from %d to %d", generation, now)
		}
	}))
	t.Run("a Job that fails stops the upgrade", w.sub(func(w *world) {
		generation := w.workload("DaemonSet", "aad-pod-identity-nmi").GetGeneration()
		stop := w.node("/bin/false")
		err := w.upgrade(podIdentity.load(w), values(w, "nmi: {probePort: 8099}"))
		stop()
		if err == nil || !contains(err.Error(), "pre-upgrade hooks failed") {
			w.Errorf("error %v", err)
		}
		if now := w.workload("DaemonSet", "aad-pod-identity-nmi").GetGeneration(); now != generation {
			w.Errorf("the DaemonSet's generation went from %d to %d", generation, now)
		}
		w.gone("rbac.authorization.k8s.io/v1 ClusterRole", "aad-pod-identity-crds")
	}))
	w.uninstall()
	w.there("aadpodidentity.k8s.io/v1 AzureIdentityBinding", "default", "users-own")
}

func (w *world) workload(kind, name string) *unstructured.Unstructured {
	w.Helper()
	o, err := w.get("apps/v1 "+kind, "", name)
	if err != nil {
		w.Fatal(err)
	}
	return o
}

// asRendered compares the pod templates of the cluster with those that a first
// install makes.
func (w *world) asRendered(s subject, vals map[string]any) {
	w.Helper()
	for _, o := range objects(w, s.render(w, charts.Release{Name: w.release, Namespace: w.namespace, Values: vals})) {
		if o.GetKind() != "Deployment" && o.GetKind() != "DaemonSet" {
			continue
		}
		live := w.workload(o.GetKind(), o.GetName())
		// Defaults are filled in by a creation that is not stored.
		o.SetName(o.GetName() + "-new")
		made := o.DeepCopy()
		if err := w.objects.Create(w.Context(), made, client.DryRunAll); err != nil {
			w.Fatal(err)
		}
		if diff := cmp.Diff(made.Object["spec"], live.Object["spec"]); diff != "" {
			w.Errorf("%s (-first install +upgrade)\n%s", o.GetName(), diff)
		}
	}
}
