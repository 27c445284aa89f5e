package arm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
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
	// UserAgent is sent beside mic's own; empty means nothing is.
	UserAgent string `json:"-"`
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

// Custom reports whether the cloud's endpoints come from a file.
func (a Account) Custom() bool { return strings.EqualFold(a.Cloud, "AzureStackCloud") }

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

// Connect makes a Connection as the account. It sends nothing yet.
func (a Account) Connect() (*Connection, error) {
	conf, err := a.configuration()
	if err != nil {
		return nil, err
	}
	base := policy.ClientOptions{Cloud: conf, Telemetry: policy.TelemetryOptions{ApplicationID: "aad-pod-identity/MIC"}}
	if a.UserAgent != "" {
		base.PerCallPolicies = []policy.Policy{suffix(a.UserAgent)}
	}
	// The controller has its own back-off and other machines to look after: one
	// quick retry, and none where Azure asks to wait. A server that accepts and
	// never answers holds up its machine only so long.
	base.Retry = policy.RetryOptions{
		MaxRetries: 1, RetryDelay: 200 * time.Millisecond, TryTimeout: 2 * time.Minute,
		StatusCodes: []int{http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout},
	}
	anew := func() (azcore.TokenCredential, error) { return a.credential(base) }
	cred, err := anew()
	if err != nil {
		return nil, err
	}
	return &Connection{
		Credential: cred, Anew: anew, Options: azarm.ClientOptions{ClientOptions: base, DisableRPRegistration: true}, Assignee: a.Assignee(),
	}, nil
}

func (a Account) credential(base policy.ClientOptions) (cred azcore.TokenCredential, err error) {
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
	return cred, nil
}

// A suffix of the user agent.
type suffix string

func (s suffix) Do(req *policy.Request) (*http.Response, error) {
	h := req.Raw().Header
	h.Set("User-Agent", strings.TrimSpace(h.Get("User-Agent")+" "+string(s)))
	return req.Next()
}
