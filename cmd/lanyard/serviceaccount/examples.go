package serviceaccount

const (
	createExample = `  # a managed identity that may read the secrets of a vault
  lanyard serviceaccount create --service-account-name payroll -n shop \
    --service-account-issuer-url https://issuer.example/ \
    --managed-identity-name payroll --managed-identity-resource-group shop-rg \
    --azure-scope /subscriptions/SUBSCRIPTION/resourceGroups/shop-rg/providers/Microsoft.KeyVault/vaults/shop \
    --azure-role "Key Vault Secrets User"

  # an application, without a role; first only look
  lanyard serviceaccount create --service-account-name payroll -n shop \
    --service-account-issuer-url https://issuer.example/ --skip-phases role-assignment --dry-run

  # by a pipeline, with a secret that is in $AZURE_CLIENT_SECRET, in another cloud
  lanyard serviceaccount create --auth-method client_secret --client-id ID --azure-env AzureUSGovernmentCloud ...`
	deleteExample = `  lanyard serviceaccount delete --service-account-name payroll -n shop \
    --service-account-issuer-url https://issuer.example/ \
    --managed-identity-name payroll --managed-identity-resource-group shop-rg

  # the identity stays
  lanyard serviceaccount delete --service-account-name payroll -n shop \
    --service-account-issuer-url https://issuer.example/ --skip-phases aad-application`
)

// phaseExamples are by verb and phase.
var phaseExamples = map[string]string{
	"create aad-application":    `  lanyard serviceaccount create phase aad-application --aad-application-name payroll`,
	"create managed-identity":   `  lanyard serviceaccount create phase managed-identity --service-account-name payroll -n shop --managed-identity-name payroll --managed-identity-resource-group shop-rg`,
	"create service-account":    `  lanyard serviceaccount create phase service-account --service-account-name payroll -n shop --aad-application-client-id ID`,
	"create federated-identity": `  lanyard serviceaccount create phase federated-identity --service-account-name payroll -n shop --service-account-issuer-url https://issuer.example/ --aad-application-object-id ID`,
	"create role-assignment":    `  lanyard serviceaccount create phase role-assignment --service-principal-object-id ID --azure-scope /subscriptions/SUBSCRIPTION --azure-role Reader`,
	"delete aad-application":    `  lanyard serviceaccount delete phase aad-application --aad-application-name payroll`,
	"delete managed-identity":   `  lanyard serviceaccount delete phase managed-identity --service-account-name payroll -n shop --managed-identity-name payroll --managed-identity-resource-group shop-rg`,
	"delete service-account":    `  lanyard serviceaccount delete phase service-account --service-account-name payroll -n shop`,
	"delete federated-identity": `  lanyard serviceaccount delete phase federated-identity --service-account-name payroll -n shop --service-account-issuer-url https://issuer.example/ --aad-application-object-id ID`,
	"delete role-assignment":    `  lanyard serviceaccount delete phase role-assignment --role-assignment-id ID`,
}
