package charts

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// systemLabel is on every object of v1.6, its namespace included.
const systemLabel = "azure-workload-identity.io/system"

// No placeholder in it: envsubst fills comments too.
const aboutWebhook = `The admission webhook of Workload Identity, with the object names of
azure-workload-identity v1.6. Its placeholders are the environment variables
AZURE_TENANT_ID and, unless it is the public cloud, AZURE_ENVIRONMENT. With an
envsubst that knows defaults, such as github.com/a8m/envsubst (GNU's does not):
  envsubst < azure-wi-webhook.yaml | kubectl apply -f -`

// webhookPlaceholders are the values of the plain manifest.
func webhookPlaceholders() map[string]any {
	return map[string]any{"azureTenantID": "${AZURE_TENANT_ID}", "azureEnvironment": "${AZURE_ENVIRONMENT:-AzurePublicCloud}"}
}

// plainWorkloadIdentity makes of the chart's objects those of v1.6's plain
// manifest: with the namespace, and without what a release adds to labels and
// selectors, or "kubectl apply" over v1.6's could not change its Deployment.
func plainWorkloadIdentity(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	level := map[string]any{systemLabel: "true"}
	for _, mode := range []string{"enforce", "audit", "warn"} {
		level["pod-security.kubernetes.io/"+mode] = "restricted"
		level["pod-security.kubernetes.io/"+mode+"-version"] = "latest"
	}
	list := []*unstructured.Unstructured{{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": workloadidentity.Namespace, "labels": level},
	}}}
	for _, o := range objects {
		dropReleaseLabels(o.Object)
		list = append(list, o)
	}
	return list
}

// dropReleaseLabels removes from every mapping with v1.6's label the labels that
// its chart adds, and the checksum of values that are not known yet.
func dropReleaseLabels(node any) {
	switch n := node.(type) {
	case []any:
		for _, e := range n {
			dropReleaseLabels(e)
		}
	case map[string]any:
		if _, ok := n[systemLabel]; ok {
			delete(n, "app")
			delete(n, "chart")
			delete(n, "release")
		}
		if annotations, ok := n["annotations"].(map[string]any); ok {
			if delete(annotations, "checksum/config"); len(annotations) == 0 {
				delete(n, "annotations")
			}
		}
		for _, e := range n {
			dropReleaseLabels(e)
		}
	}
}
