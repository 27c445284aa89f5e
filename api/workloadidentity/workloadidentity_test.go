package workloadidentity

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Users write these values into manifests and code: a change breaks them.
func TestTheContractNeverChanges(t *testing.T) {
	got := []string{
		LabelUse, AnnotationClientID, AnnotationTenantID, AnnotationTokenExpiration, AnnotationSkipContainers,
		AnnotationInjectProxySidecar, AnnotationProxySidecarPort,
		EnvClientID, EnvTenantID, EnvFederatedTokenFile, EnvAuthorityHost,
		MountPath + "/" + TokenPath, LegacyMountPath + "/" + LegacyTokenPath, LegacyVolume, VolumePrefix, Audience,
		WebhookConfiguration, WebhookName, WebhookPath,
	}
	want := []string{
		"azure.workload.identity/use", "azure.workload.identity/client-id", "azure.workload.identity/tenant-id",
		"azure.workload.identity/service-account-token-expiration", "azure.workload.identity/skip-containers",
		"azure.workload.identity/inject-proxy-sidecar", "azure.workload.identity/proxy-sidecar-port",
		"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST",
		"/var/run/secrets/azure/wi/token/azure-identity-token", "/var/run/secrets/azure/tokens/azure-identity-token",
		"azure-identity-token", "azure-workload-identity-reserved-", "api://AzureADTokenExchange",
		"azure-wi-webhook-mutating-webhook-configuration", "mutation.azure-workload-identity.io", "/mutate-v1-pod",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if DefaultTokenExpiration != 3600 || MinTokenExpiration != 3600 || MaxTokenExpiration != 86400 || VolumeHashLength != 30 {
		t.Error("a limit has changed")
	}
}
