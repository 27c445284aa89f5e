package azrbac

import "github.com/lanyard-id/lanyard/internal/azure"

// BuiltIn returns the built-in roles that the local cloud offers: a selection of Azure's, permissions as published.
// Source: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles (August 2026)
func BuiltIn() []Definition {
	return []Definition{
		builtIn(azure.RoleOwner, "Owner", "Manages everything, including who has access.", Permission{
			Actions: []string{
				"*",
			},
		}),
		builtIn(azure.RoleContributor, "Contributor", "Manages everything, but not who has access.", Permission{
			Actions: []string{
				"*",
			},
			NotActions: []string{
				"Microsoft.Authorization/*/Delete",
				"Microsoft.Authorization/*/Write",
				"Microsoft.Authorization/elevateAccess/Action",
				"Microsoft.Blueprint/blueprintAssignments/write",
				"Microsoft.Blueprint/blueprintAssignments/delete",
				"Microsoft.Compute/galleries/share/action",
				"Microsoft.Purview/consents/write",
				"Microsoft.Purview/consents/delete",
				"Microsoft.Resources/deploymentStacks/manageDenySetting/action",
				"Microsoft.Subscription/cancel/action",
				"Microsoft.Subscription/enable/action",
			},
		}),
		builtIn(azure.RoleReader, "Reader", "Sees everything, changes nothing.", Permission{
			Actions: []string{
				"*/read",
			},
		}),
		builtIn(azure.RoleUserAccessAdministrator, "User Access Administrator", "Manages who has access.", Permission{
			Actions: []string{
				"*/read",
				"Microsoft.Authorization/*",
				"Microsoft.Support/*",
			},
		}),
		builtIn(azure.RoleRBACAdministrator, "Role Based Access Control Administrator", "Manages role assignments.", Permission{
			Actions: []string{
				"Microsoft.Authorization/roleAssignments/write",
				"Microsoft.Authorization/roleAssignments/delete",
				"*/read",
				"Microsoft.Support/*",
			},
		}),
		builtIn(azure.RoleManagedIdentityOperator, "Managed Identity Operator", "Reads user-assigned identities and assigns them to resources.", Permission{
			Actions: []string{
				"Microsoft.ManagedIdentity/userAssignedIdentities/*/read",
				"Microsoft.ManagedIdentity/userAssignedIdentities/*/assign/action",
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Resources/deployments/*",
				"Microsoft.Support/*",
			},
		}),
		builtIn(azure.RoleManagedIdentityContributor, "Managed Identity Contributor", "Creates, reads, changes and deletes user-assigned identities and their federated credentials.", Permission{
			Actions: []string{
				"Microsoft.ManagedIdentity/userAssignedIdentities/read",
				"Microsoft.ManagedIdentity/userAssignedIdentities/write",
				"Microsoft.ManagedIdentity/userAssignedIdentities/delete",
				"Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/read",
				"Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/write",
				"Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/delete",
				"Microsoft.ManagedIdentity/userAssignedIdentities/revokeTokens/action",
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Resources/deployments/*",
				"Microsoft.Support/*",
			},
		}),
		builtIn(azure.RoleVirtualMachineContributor, "Virtual Machine Contributor", "Manages virtual machines and scale sets, but does not sign in to them.", Permission{
			Actions: []string{
				"Microsoft.Authorization/*/read",
				"Microsoft.Compute/availabilitySets/*",
				"Microsoft.Compute/locations/*",
				"Microsoft.Compute/virtualMachines/*",
				"Microsoft.Compute/virtualMachineScaleSets/*",
				"Microsoft.Compute/cloudServices/*",
				"Microsoft.Compute/disks/write",
				"Microsoft.Compute/disks/read",
				"Microsoft.Compute/disks/delete",
				"Microsoft.Compute/hostgroups/write",
				"Microsoft.Compute/hostgroups/hosts/write",
				"Microsoft.DevTestLab/schedules/*",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Network/applicationGateways/backendAddressPools/join/action",
				"Microsoft.Network/loadBalancers/backendAddressPools/join/action",
				"Microsoft.Network/loadBalancers/inboundNatPools/join/action",
				"Microsoft.Network/loadBalancers/inboundNatRules/join/action",
				"Microsoft.Network/loadBalancers/probes/join/action",
				"Microsoft.Network/loadBalancers/read",
				"Microsoft.Network/locations/*",
				"Microsoft.Network/networkInterfaces/*",
				"Microsoft.Network/networkSecurityGroups/join/action",
				"Microsoft.Network/networkSecurityGroups/read",
				"Microsoft.Network/publicIPAddresses/join/action",
				"Microsoft.Network/publicIPAddresses/read",
				"Microsoft.Network/virtualNetworks/read",
				"Microsoft.Network/virtualNetworks/subnets/join/action",
				"Microsoft.RecoveryServices/locations/*",
				"Microsoft.RecoveryServices/Vaults/backupFabrics/backupProtectionIntent/write",
				"Microsoft.RecoveryServices/Vaults/backupFabrics/protectionContainers/protectedItems/*/read",
				"Microsoft.RecoveryServices/Vaults/backupFabrics/protectionContainers/protectedItems/read",
				"Microsoft.RecoveryServices/Vaults/backupFabrics/protectionContainers/protectedItems/write",
				"Microsoft.RecoveryServices/Vaults/backupPolicies/read",
				"Microsoft.RecoveryServices/Vaults/backupPolicies/write",
				"Microsoft.RecoveryServices/Vaults/read",
				"Microsoft.RecoveryServices/Vaults/usages/read",
				"Microsoft.RecoveryServices/Vaults/write",
				"Microsoft.ResourceHealth/availabilityStatuses/read",
				"Microsoft.Resources/deployments/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.SerialConsole/serialPorts/connect/action",
				"Microsoft.SqlVirtualMachine/*",
				"Microsoft.Storage/storageAccounts/listKeys/action",
				"Microsoft.Storage/storageAccounts/read",
				"Microsoft.Support/*",
			},
		}),
		builtIn(azure.RoleKeyVaultAdministrator, "Key Vault Administrator", "Performs all data plane operations on a vault and what it holds.", Permission{
			Actions: []string{
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Resources/deployments/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Support/*",
				"Microsoft.KeyVault/checkNameAvailability/read",
				"Microsoft.KeyVault/deletedVaults/read",
				"Microsoft.KeyVault/locations/*/read",
				"Microsoft.KeyVault/vaults/*/read",
				"Microsoft.KeyVault/operations/read",
			},
			DataActions: []string{
				"Microsoft.KeyVault/vaults/*",
			},
		}),
		builtIn(azure.RoleKeyVaultContributor, "Key Vault Contributor", "Manages vaults, but does not see what they hold.", Permission{
			Actions: []string{
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.KeyVault/*",
				"Microsoft.Resources/deployments/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Support/*",
			},
			NotActions: []string{
				"Microsoft.KeyVault/locations/deletedVaults/purge/action",
				"Microsoft.KeyVault/hsmPools/*",
				"Microsoft.KeyVault/managedHsms/*",
			},
		}),
		builtIn(azure.RoleKeyVaultReader, "Key Vault Reader", "Reads the metadata of vaults and what they hold, but no values.", Permission{
			Actions: []string{
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Support/*",
				"Microsoft.KeyVault/checkNameAvailability/read",
				"Microsoft.KeyVault/deletedVaults/read",
				"Microsoft.KeyVault/locations/*/read",
				"Microsoft.KeyVault/vaults/*/read",
				"Microsoft.KeyVault/operations/read",
			},
			DataActions: []string{
				"Microsoft.KeyVault/vaults/*/read",
				"Microsoft.KeyVault/vaults/secrets/readMetadata/action",
			},
		}),
		builtIn(azure.RoleKeyVaultSecretsOfficer, "Key Vault Secrets Officer", "Performs all operations on the secrets of a vault.", Permission{
			Actions: []string{
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Resources/deployments/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Support/*",
				"Microsoft.KeyVault/checkNameAvailability/read",
				"Microsoft.KeyVault/deletedVaults/read",
				"Microsoft.KeyVault/locations/*/read",
				"Microsoft.KeyVault/vaults/*/read",
				"Microsoft.KeyVault/operations/read",
			},
			DataActions: []string{
				"Microsoft.KeyVault/vaults/secrets/*",
			},
		}),
		builtIn(azure.RoleKeyVaultSecretsUser, "Key Vault Secrets User", "Reads secret values.", Permission{
			DataActions: []string{
				"Microsoft.KeyVault/vaults/secrets/getSecret/action",
				"Microsoft.KeyVault/vaults/secrets/readMetadata/action",
			},
		}),
		builtIn(azure.RoleStorageAccountContributor, "Storage Account Contributor", "Manages storage accounts, without reading what they hold except by their keys.", Permission{
			Actions: []string{
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Insights/diagnosticSettings/*",
				"Microsoft.Network/virtualNetworks/subnets/joinViaServiceEndpoint/action",
				"Microsoft.ResourceHealth/availabilityStatuses/read",
				"Microsoft.Resources/deployments/*",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Storage/storageAccounts/*",
				"Microsoft.Support/*",
			},
		}),
		builtIn(azure.RoleStorageBlobDataOwner, "Storage Blob Data Owner", "Does everything with blobs and containers.", Permission{
			Actions: []string{
				"Microsoft.Storage/storageAccounts/blobServices/containers/*",
				"Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action",
			},
			DataActions: []string{
				"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/*",
			},
		}),
		builtIn(azure.RoleStorageBlobDataContributor, "Storage Blob Data Contributor", "Reads, writes and deletes blobs and containers.", Permission{
			Actions: []string{
				"Microsoft.Storage/storageAccounts/blobServices/containers/delete",
				"Microsoft.Storage/storageAccounts/blobServices/containers/read",
				"Microsoft.Storage/storageAccounts/blobServices/containers/write",
				"Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action",
			},
			DataActions: []string{
				"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/delete",
				"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read",
				"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write",
				"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/move/action",
				"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/add/action",
			},
		}),
		builtIn(azure.RoleStorageBlobDataReader, "Storage Blob Data Reader", "Reads and lists blobs and containers.", Permission{
			Actions: []string{
				"Microsoft.Storage/storageAccounts/blobServices/containers/read",
				"Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action",
			},
			DataActions: []string{
				"Microsoft.Storage/storageAccounts/blobServices/containers/blobs/read",
			},
		}),
		builtIn(azure.RoleAKSClusterUser, "Azure Kubernetes Service Cluster User Role", "Lists the user credential of a cluster.", Permission{
			Actions: []string{
				"Microsoft.ContainerService/managedClusters/listClusterUserCredential/action",
				"Microsoft.ContainerService/managedClusters/read",
			},
		}),
		builtIn(azure.RoleAKSClusterAdmin, "Azure Kubernetes Service Cluster Admin Role", "Lists the admin credential of a cluster.", Permission{
			Actions: []string{
				"Microsoft.ContainerService/managedClusters/listClusterAdminCredential/action",
				"Microsoft.ContainerService/managedClusters/accessProfiles/listCredential/action",
				"Microsoft.ContainerService/managedClusters/read",
				"Microsoft.ContainerService/managedClusters/runcommand/action",
			},
		}),
		builtIn(azure.RoleAKSContributor, "Azure Kubernetes Service Contributor Role", "Reads and writes clusters.", Permission{
			Actions: []string{
				"Microsoft.ContainerService/managedClusters/read",
				"Microsoft.ContainerService/managedClusters/write",
				"Microsoft.Resources/deployments/*",
			},
		}),
		builtIn(azure.RoleAKSRBACClusterAdmin, "Azure Kubernetes Service RBAC Cluster Admin", "Does everything in a cluster.", Permission{
			Actions: []string{
				"Microsoft.Authorization/*/read",
				"Microsoft.Insights/alertRules/*",
				"Microsoft.Resources/deployments/write",
				"Microsoft.Resources/subscriptions/operationresults/read",
				"Microsoft.Resources/subscriptions/read",
				"Microsoft.Resources/subscriptions/resourceGroups/read",
				"Microsoft.Support/*",
				"Microsoft.ContainerService/managedClusters/listClusterUserCredential/action",
			},
			DataActions: []string{
				"Microsoft.ContainerService/managedClusters/*",
			},
		}),
		builtIn(azure.RoleAcrPull, "AcrPull", "Pulls images.", Permission{
			Actions: []string{
				"Microsoft.ContainerRegistry/registries/pull/read",
			},
		}),
	}
}

func builtIn(id, name, description string, p Permission) Definition {
	return Definition{ID: id, Name: name, Description: description, AssignableScopes: []string{"/"}, Permissions: []Permission{p}}
}
