package arm

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/lanyard-id/lanyard/internal/arm"
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
	Endpoints *arm.Cloud `json:"-"`
	// UserAgent is sent beside mic's own; empty means nothing is.
	UserAgent string `json:"-"`
}

// ParseAccount reads an azure.json. Errors never quote it: it holds a secret.
func ParseAccount(data []byte) (Account, error) {
	var a Account
	if err := json.Unmarshal(data, &a); err != nil {
		return Account{}, errors.New("the cloud configuration is not JSON with the fields of azure.json")
	}
	return a, nil
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

func (a Account) endpoints() (arm.Cloud, error) {
	if a.Endpoints != nil {
		return *a.Endpoints, nil
	}
	return arm.CloudByName(a.Cloud)
}

// Connect makes a Connection as the account. It sends nothing yet.
func (a Account) Connect() (*Connection, error) {
	endpoints, err := a.endpoints()
	if err != nil {
		return nil, err
	}
	base := endpoints.Options("aad-pod-identity/MIC")
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
	anew := func() (azcore.TokenCredential, error) { return a.credential(endpoints, base) }
	cred, err := anew()
	if err != nil {
		return nil, err
	}
	return &Connection{
		Credential: cred, Anew: anew, Options: *arm.ManagerOptions(base), Assignee: a.Assignee(),
	}, nil
}

func (a Account) credential(endpoints arm.Cloud, base policy.ClientOptions) (azcore.TokenCredential, error) {
	switch {
	case a.managed():
		return arm.Login{Method: arm.MethodManagedIdentity, ClientID: a.MSIClientID}.Credential(endpoints, base)
	case a.TenantID == "" || a.ClientID == "" || a.ClientSecret == "":
		return nil, errors.New("no credential for Azure: set TENANT_ID, CLIENT_ID and CLIENT_SECRET, or USE_MSI=true with USER_ASSIGNED_MSI_CLIENT_ID, or --cloudconfig")
	default:
		return arm.Login{Method: arm.MethodClientSecret, TenantID: a.TenantID, ClientID: a.ClientID, ClientSecret: a.ClientSecret}.Credential(endpoints, base)
	}
}

// A suffix of the user agent.
type suffix string

func (s suffix) Do(req *policy.Request) (*http.Response, error) {
	h := req.Raw().Header
	h.Set("User-Agent", strings.TrimSpace(h.Get("User-Agent")+" "+string(s)))
	return req.Next()
}
