// Package workloadidentity spells the contract of Azure Workload Identity:
// labels, annotations, environment variables, paths and limits, with the
// values of azure-workload-identity v1.6.
//
// A pod with LabelUse asks for an identity; its service account names it by
// AnnotationClientID; the webhook adds a projected token and the variables
// that the Azure SDKs read.
package workloadidentity

// Prefix starts every label and annotation of the contract.
const Prefix = "azure.workload.identity/"

// Labels.
const (
	// LabelUse on a pod, with the value "true", asks for the mutation. On a
	// service account it has no meaning.
	LabelUse = Prefix + "use"
)

// Annotations.
const (
	// AnnotationClientID on a service account is the client id of the managed
	// identity or application, verbatim the value of EnvClientID. Without it
	// the variable is not set.
	AnnotationClientID = Prefix + "client-id"

	// AnnotationTenantID on a service account replaces the webhook's tenant.
	// Present but empty means that EnvTenantID is not set.
	AnnotationTenantID = Prefix + "tenant-id"

	// AnnotationTokenExpiration on a pod or, with less weight, on a service
	// account is the token's lifetime in seconds, from MinTokenExpiration to
	// MaxTokenExpiration. Empty means not set.
	AnnotationTokenExpiration = Prefix + "service-account-token-expiration"

	// AnnotationSkipContainers on a pod lists, separated by ";", the names of
	// containers and init containers that are left alone.
	AnnotationSkipContainers = Prefix + "skip-containers"

	// AnnotationInjectProxySidecar on a pod, with a value that is true, asks
	// for a sidecar that answers the instance metadata service's token endpoint.
	AnnotationInjectProxySidecar = Prefix + "inject-proxy-sidecar"

	// AnnotationProxySidecarPort on a pod is that sidecar's port, from 1 to
	// 65535. Empty means DefaultProxyPort.
	AnnotationProxySidecarPort = Prefix + "proxy-sidecar-port"

	// AnnotationUsePrefix and a suffix that the administrator chooses, on a
	// pod, with the value "true" in any case, ask for the custom token
	// endpoint. AKS's suffix is "identity-binding".
	AnnotationUsePrefix = Prefix + "use-"

	// AnnotationInjected on a pod is the webhook's own: JSON that says which
	// variables it took from which service account. No part of v1.6's contract.
	AnnotationInjected = "lanyard.id/injected-identity"
)

// Environment variables that are added to a container, in this order, each
// only if the container has no variable of that name.
const (
	EnvClientID           = "AZURE_CLIENT_ID"
	EnvTenantID           = "AZURE_TENANT_ID"
	EnvFederatedTokenFile = "AZURE_FEDERATED_TOKEN_FILE"
	EnvAuthorityHost      = "AZURE_AUTHORITY_HOST"
)

// Environment variables that follow them for the custom token endpoint.
const (
	EnvTokenProxy = "AZURE_KUBERNETES_TOKEN_PROXY"
	EnvSNIName    = "AZURE_KUBERNETES_SNI_NAME"
	EnvCAFile     = "AZURE_KUBERNETES_CA_FILE"
	EnvCAData     = "AZURE_KUBERNETES_CA_DATA"
)

// The token proxy sidecar.
const (
	ProxyContainer     = "azwi-proxy"
	ProxyInitContainer = "azwi-proxy-init"
	EnvProxyPort       = "PROXY_PORT" // of the init container

	DefaultProxyPort = 8000

	// ProxyUID is the user whose requests the redirect lets through.
	ProxyUID = 1501

	// NativeSidecarMinor is the minor version of Kubernetes 1 from which on
	// the sidecar is an init container that restarts.
	NativeSidecarMinor = 32
)

// The projected volume as v1.6 lays it out.
const (
	// VolumePrefix starts the volume's name; the first VolumeHashLength hex
	// digits of the SHA-256 of the pod's name follow (of generateName and
	// " (prefix)" for a pod that has no name yet).
	VolumePrefix     = "azure-workload-identity-reserved-"
	VolumeHashLength = 30

	// MountPath is where the volume is mounted, TokenPath the token's file in it.
	MountPath = "/var/run/secrets/azure/wi"
	TokenPath = "token/azure-identity-token"

	// CAPath is the custom token endpoint's CA in the volume.
	CAPath = "ca-cert/ca.crt"
)

// The projected volume as releases before v1.6 laid it out, and as AKS still does.
const (
	LegacyVolume    = "azure-identity-token"
	LegacyMountPath = "/var/run/secrets/azure/tokens"
	LegacyTokenPath = "azure-identity-token"
)

// The projected token.
const (
	// Audience is what Entra expects in the token.
	Audience = "api://AzureADTokenExchange"

	// Lifetimes in seconds.
	DefaultTokenExpiration int64 = 3600
	MinTokenExpiration     int64 = 3600
	MaxTokenExpiration     int64 = 86400
)

// Names of the installed objects.
const (
	Namespace            = "azure-workload-identity-system"
	WebhookConfiguration = "azure-wi-webhook-mutating-webhook-configuration"
	WebhookName          = "mutation.azure-workload-identity.io"
	WebhookPath          = "/mutate-v1-pod"
	WebhookService       = "azure-wi-webhook-webhook-service"
	WebhookDeployment    = "azure-wi-webhook-controller-manager"
	CertificateSecret    = "azure-wi-webhook-server-cert"
	WebhookConfigMap     = "azure-wi-webhook-config"
)
