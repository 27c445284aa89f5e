package mic

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// An Account says as whom and in which cloud the controller acts. Its JSON form
// is the cluster's azure.json.
type Account struct {
	Cloud        string `json:"cloud"` // empty means AzurePublicCloud
	TenantID     string `json:"tenantId"`
	ClientID     string `json:"aadClientId"`
	ClientSecret string `json:"aadClientSecret"`
	UseMSI       bool   `json:"useManagedIdentityExtension"`
	MSIClientID  string `json:"userAssignedIdentityID"` // with UseMSI; empty means the system-assigned identity

	// Endpoints, if not nil, replaces what Cloud stands for.
	Endpoints *Endpoints `json:"-"`
}

// Endpoints of a cloud that has no well-known name. Its JSON form is the file
// that AZURE_ENVIRONMENT_FILEPATH names.
type Endpoints struct {
	Authority string `json:"activeDirectoryEndpoint"`
	Manager   string `json:"resourceManagerEndpoint"`
	Audience  string `json:"serviceManagementEndpoint"` // empty means Manager
}

// ParseAccount reads an azure.json. Errors never quote it: it holds a secret.
func ParseAccount(data []byte) (Account, error) {
	var a Account
	if err := json.Unmarshal(data, &a); err != nil {
		return Account{}, errors.New("the cloud configuration is not JSON with the fields of azure.json")
	}
	return a, nil
}

// ParseEndpoints reads the description of a custom cloud.
func ParseEndpoints(data []byte) (Endpoints, error) {
	var e Endpoints
	if err := json.Unmarshal(data, &e); err != nil {
		return Endpoints{}, fmt.Errorf("reading the description of the cloud: %w", err)
	}
	if e.Authority == "" || e.Manager == "" {
		return Endpoints{}, errors.New("the description of the cloud needs activeDirectoryEndpoint and resourceManagerEndpoint")
	}
	return e, nil
}

// Assignee is the client id that the controller acts as; empty for a
// system-assigned identity.
func (a Account) Assignee() string {
	if a.managed() {
		return a.MSIClientID
	}
	return a.ClientID
}

// managed reports whether a managed identity is used; azure.json of clusters
// with a managed identity says "msi" in place of the client id.
func (a Account) managed() bool { return a.UseMSI || strings.EqualFold(a.ClientID, "msi") }

func (a Account) configuration() (cloud.Configuration, error) {
	if e := a.Endpoints; e != nil {
		audience := e.Audience
		if audience == "" {
			audience = e.Manager
		}
		return cloud.Configuration{
			ActiveDirectoryAuthorityHost: e.Authority,
			Services:                     map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {Endpoint: strings.TrimSuffix(e.Manager, "/"), Audience: audience}},
		}, nil
	}
	switch strings.ToLower(a.Cloud) {
	case "", "azurecloud", "azurepubliccloud":
		return cloud.AzurePublic, nil
	case "azurechinacloud":
		return cloud.AzureChina, nil
	case "azureusgovernment", "azureusgovernmentcloud":
		return cloud.AzureGovernment, nil
	case "azurestackcloud":
		return cloud.Configuration{}, errors.New("the cloud AzureStackCloud needs AZURE_ENVIRONMENT_FILEPATH")
	default:
		return cloud.Configuration{}, fmt.Errorf("unknown cloud %q: use AzurePublicCloud, AzureChinaCloud, AzureUSGovernmentCloud or AzureStackCloud", a.Cloud)
	}
}

// Connect makes a Cloud that acts as the account. It sends nothing yet.
func (a Account) Connect() (*AzureCloud, error) {
	conf, err := a.configuration()
	if err != nil {
		return nil, err
	}
	base := policy.ClientOptions{Cloud: conf, Telemetry: policy.TelemetryOptions{ApplicationID: "aad-pod-identity/MIC"}}
	// The controller has its own back-off and other machines to look after.
	base.Retry = policy.RetryOptions{MaxRetries: 1}
	var cred azcore.TokenCredential
	switch {
	case a.managed():
		o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: base}
		if a.MSIClientID != "" {
			o.ID = azidentity.ClientID(a.MSIClientID)
		}
		cred, err = azidentity.NewManagedIdentityCredential(o)
	case a.TenantID == "" || a.ClientID == "" || a.ClientSecret == "":
		return nil, errors.New("no credential for Azure: set TENANT_ID, CLIENT_ID and CLIENT_SECRET, or USE_MSI=true with USER_ASSIGNED_MSI_CLIENT_ID, or --cloudconfig")
	default:
		cred, err = azidentity.NewClientSecretCredential(a.TenantID, a.ClientID, a.ClientSecret, &azidentity.ClientSecretCredentialOptions{
			ClientOptions:            base,
			DisableInstanceDiscovery: a.Endpoints != nil,
		})
	}
	if err != nil {
		return nil, fmt.Errorf("making the credential for Azure: %w", err)
	}
	return &AzureCloud{Credential: cred, Options: arm.ClientOptions{ClientOptions: base, DisableRPRegistration: true}}, nil
}
