// Package azure holds what every part of Lanyard must spell the same way: resource ids, host names, audiences and
// the ids of well-known roles. It has no behaviour beyond parsing and comparing, and no dependency.
package azure

import "slices"

// Host names of the public cloud. The local cloud answers under exactly these names.
const (
	HostLogin      = "login.microsoftonline.com"
	HostManagement = "management.azure.com"
	HostGraph      = "graph.microsoft.com"
	SuffixVault    = "vault.azure.net"       // a vault is NAME.vault.azure.net
	SuffixBlob     = "blob.core.windows.net" // the blobs of a storage account are at NAME.blob.core.windows.net

	// HostManagementClassic is the service-management host. It survives as an audience and as an alias of
	// HostManagement.
	HostManagementClassic = "management.core.windows.net"

	// AddressMetadata is the link-local address of the instance metadata service.
	AddressMetadata = "169.254.169.254"
)

// LoginHosts are all names under which Entra's token service answers; the first is the preferred one.
func LoginHosts() []string {
	return []string{HostLogin, "login.windows.net", "login.microsoft.com", "sts.windows.net"}
}

// Resource identifiers: the audience that a client asks a token for.
const (
	ResourceManagement = "https://management.azure.com"
	ResourceVault      = "https://vault.azure.net"
	ResourceGraph      = "https://graph.microsoft.com"
	ResourceStorage    = "https://storage.azure.com"
)

// Application ids of the resources, which may stand for the resource in a token request.
const (
	AppManagement = "797f4846-ba00-4fd7-ba43-dac1f8f63013"
	AppVault      = "cfa8b339-82a2-471a-a3c9-0fc0be7a4093"
	AppGraph      = "00000003-0000-0000-c000-000000000000"
	AppStorage    = "e406a681-f3d4-42a8-90b6-c2b029497af1"
	AppAKSServer  = "6dae42f8-4368-4678-94ff-3960e28e3630"
	AppAKSClient  = "80faf920-1908-4b52-b5ef-a8e7bedfc67a"
)

// AudienceExchange is the audience of assertions for workload identity federation in the public cloud.
const AudienceExchange = "api://AzureADTokenExchange"

// A Resource is something that tokens are issued for, with all spellings of its audience that it accepts. Spellings
// compare byte for byte.
type Resource struct {
	Name      string   // what the portal calls it
	AppID     string   // application id of the resource principal
	Audiences []string // the first is the canonical one
}

// Resources are the well-known resources.
func Resources() []Resource {
	return []Resource{
		{"Windows Azure Service Management API", AppManagement, ManagementAudiences()},
		{"Azure Key Vault", AppVault, VaultAudiences()},
		{"Microsoft Graph", AppGraph, []string{ResourceGraph, ResourceGraph + "/", AppGraph}},
		{"Azure Storage", AppStorage, []string{ResourceStorage, ResourceStorage + "/", AppStorage}},
		{"Azure Kubernetes Service AAD Server", AppAKSServer, []string{AppAKSServer, "spn:" + AppAKSServer}},
	}
}

// FindResource returns the well-known resource one of whose audiences is exactly audience.
func FindResource(audience string) (Resource, bool) {
	for _, r := range Resources() {
		if slices.Contains(r.Audiences, audience) {
			return r, true
		}
	}
	return Resource{}, false
}

// ManagementAudiences are the audiences that Azure Resource Manager accepts in a token.
func ManagementAudiences() []string {
	return []string{
		ResourceManagement, ResourceManagement + "/",
		"https://" + HostManagementClassic, "https://" + HostManagementClassic + "/",
		AppManagement,
	}
}

// VaultAudiences are the audiences that a Key Vault accepts in a token.
func VaultAudiences() []string {
	return []string{ResourceVault, ResourceVault + "/", AppVault}
}

// Permissions of Microsoft Graph that an application can be granted.
// Source: https://learn.microsoft.com/graph/permissions-reference
const (
	PermissionApplicationReadAll          = "Application.Read.All"
	PermissionApplicationReadWriteAll     = "Application.ReadWrite.All"
	PermissionApplicationReadWriteOwnedBy = "Application.ReadWrite.OwnedBy"
	PermissionDirectoryReadAll            = "Directory.Read.All"
	PermissionDirectoryReadWriteAll       = "Directory.ReadWrite.All"
)

// Template ids of directory roles; they are the same in every tenant.
// Source: https://learn.microsoft.com/entra/identity/role-based-access-control/permissions-reference
const (
	DirectoryRoleGlobalAdministrator           = "62e90394-69f5-4237-9190-012177145e10"
	DirectoryRoleApplicationAdministrator      = "9b895d92-2cd3-44c7-9d02-a6ac2d5ea5c3"
	DirectoryRoleCloudApplicationAdministrator = "158c047a-c907-4556-b7ef-446551a6b5f7"
	DirectoryRoleDirectoryReaders              = "88d8e3e3-8f55-4a1e-953a-9b9898b8876b"
)
