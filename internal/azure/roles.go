package azure

// Ids of built-in roles; they are the same in every tenant.
// Source: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
const (
	RoleOwner                   = "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"
	RoleContributor             = "b24988ac-6180-42a0-ab88-20f7382dd24c"
	RoleReader                  = "acdd72a7-3385-48ef-bd42-f606fba81ae7"
	RoleUserAccessAdministrator = "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9"
	RoleRBACAdministrator       = "f58310d9-a9f6-439a-9e8d-f62e7b41a168"

	RoleManagedIdentityOperator    = "f1a07417-d97a-45cb-824c-7a7467783830"
	RoleManagedIdentityContributor = "e40ec5ca-96e0-45a2-b4ff-59039f2c2b59"
	RoleVirtualMachineContributor  = "9980e02c-c2be-4d73-94e8-173b1dc7cf3c"

	RoleKeyVaultAdministrator  = "00482a5a-887f-4fb3-b363-3b7fe8e74483"
	RoleKeyVaultContributor    = "f25e0fa2-a7c8-4377-a976-54943a77a395"
	RoleKeyVaultReader         = "21090545-7ca7-4776-b22c-e363652d74d2"
	RoleKeyVaultSecretsOfficer = "b86a8fe4-44ce-4948-aee5-eccb2c155cd7"
	RoleKeyVaultSecretsUser    = "4633458b-17de-408a-b874-0445c86b69e6"

	RoleAKSClusterUser      = "4abbcc35-e782-43d8-92c5-2d3f1bd2253f"
	RoleAKSClusterAdmin     = "0ab0b1a8-8aac-4efd-b8c2-3ee1fb270be8"
	RoleAKSContributor      = "ed7f3fbd-7b88-4dd4-9017-9adb7ce333f8"
	RoleAKSRBACReader       = "7f6c6a51-bcf8-42ba-9220-52d62157d7db"
	RoleAKSRBACWriter       = "a7ffa36f-339b-4b5c-8bdf-e2c188b2c0eb"
	RoleAKSRBACAdmin        = "3498e952-d568-435e-9b2c-8d77e338d7f7"
	RoleAKSRBACClusterAdmin = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b"

	RoleAcrPull = "7f951dda-4ed3-4680-a7ca-43fe172d538d"

	RoleStorageAccountContributor  = "17d1049b-9a84-46fb-8f53-869881c3d3ab"
	RoleStorageBlobDataOwner       = "b7e6dc6d-f1e8-4753-8033-0f276bb0955b"
	RoleStorageBlobDataContributor = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
	RoleStorageBlobDataReader      = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"
)

// TypeManagedIdentity and the others are resource types as ResourceID.Type writes them.
const (
	TypeResourceGroup          = "Microsoft.Resources/resourceGroups"
	TypeManagedIdentity        = "Microsoft.ManagedIdentity/userAssignedIdentities"
	TypeFederatedCredential    = TypeManagedIdentity + "/federatedIdentityCredentials"
	TypeVirtualMachine         = "Microsoft.Compute/virtualMachines"
	TypeVirtualMachineScaleSet = "Microsoft.Compute/virtualMachineScaleSets"
	TypeScaleSetInstance       = TypeVirtualMachineScaleSet + "/virtualMachines" // one instance of a scale set
	TypeVault                  = "Microsoft.KeyVault/vaults"
	TypeStorageAccount         = "Microsoft.Storage/storageAccounts"
	TypeRoleAssignment         = "Microsoft.Authorization/roleAssignments"
	TypeRoleDefinition         = "Microsoft.Authorization/roleDefinitions"
	TypeSubscription           = "Microsoft.Resources/subscriptions"
)
