// Package arm says in which Azure cloud, and as whom, requests are made. All
// programs that speak with Resource Manager, Graph or storage share it:
//
//	CloudByName, ReadCloud   where: endpoints of a public, sovereign or custom cloud
//	DefaultSubscription      where in it: what az works in
//	Login.Credential         as whom: az's session, a secret, a certificate, an identity
//	Cloud.Options            what every SDK client is made with
//	Error                    what Azure answered, in one shape for Resource Manager and Graph
package arm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// Names of clouds, as AZURE_ENVIRONMENT and --azure-env have them.
const (
	Public     = "AzurePublicCloud"
	Government = "AzureUSGovernmentCloud"
	China      = "AzureChinaCloud"
	Stack      = "AzureStackCloud" // described by the file that EnvironmentFile names
)

// EnvironmentFile is the variable that names the description of a custom cloud.
const EnvironmentFile = "AZURE_ENVIRONMENT_FILEPATH"

// Names are those that CloudByName knows, and Stack.
func Names() []string { return []string{Public, Government, China, Stack} }

// A Cloud is the set of endpoints of one Azure cloud. The zero value is none:
// use CloudByName("") for the public one.
type Cloud struct {
	Name            string // as Names have it; a custom cloud's own name otherwise
	Authority       string // URL of Entra
	Manager         string // URL of Resource Manager
	ManagerAudience string // what its tokens are for; empty means Manager
	Graph           string // URL of Microsoft Graph without version; empty if the cloud has none
	BlobSuffix      string // hosts of blob storage are ACCOUNT.BlobSuffix; empty if unknown
	Custom          bool   // Entra's public instance discovery does not know Authority
}

// CloudByName returns a cloud by any of the names in use for it, in any case;
// "" is the public one. The custom cloud has no fixed endpoints: ReadCloud.
func CloudByName(name string) (Cloud, error) {
	switch strings.ToLower(name) {
	case "", "azurecloud", "azurepubliccloud":
		return known(Public, cloud.AzurePublic, "https://graph.microsoft.com", "blob.core.windows.net"), nil
	case "azureusgovernment", "azureusgovernmentcloud":
		return known(Government, cloud.AzureGovernment, "https://graph.microsoft.us", "blob.core.usgovcloudapi.net"), nil
	case "azurechinacloud":
		return known(China, cloud.AzureChina, "https://microsoftgraph.chinacloudapi.cn", "blob.core.chinacloudapi.cn"), nil
	case "azurestackcloud":
		return Cloud{}, fmt.Errorf("the cloud %s needs %s", Stack, EnvironmentFile)
	case "azuregermancloud":
		return Cloud{}, errors.New("the cloud AzureGermanCloud was closed in 2021: Azure's regions in Germany are part of AzurePublicCloud")
	default:
		return Cloud{}, fmt.Errorf("unknown cloud %q: use AzurePublicCloud, AzureChinaCloud, AzureUSGovernmentCloud or AzureStackCloud", name)
	}
}

func known(name string, conf cloud.Configuration, graph, blob string) Cloud {
	manager := conf.Services[cloud.ResourceManager]
	return Cloud{
		Name: name, Authority: conf.ActiveDirectoryAuthorityHost, Manager: manager.Endpoint, ManagerAudience: manager.Audience,
		Graph: graph, BlobSuffix: blob,
	}
}

// Find returns the cloud of a name and, for the custom one, what the file
// describes; getenv tells where that is.
func Find(name string, getenv func(string) string) (Cloud, error) {
	if file := getenv(EnvironmentFile); file != "" && strings.EqualFold(name, Stack) {
		return ReadCloud(file)
	}
	return CloudByName(name)
}

// ReadCloud reads the description of a custom cloud, the file that
// AZURE_ENVIRONMENT_FILEPATH names.
func ReadCloud(file string) (Cloud, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Cloud{}, fmt.Errorf("reading the description of the cloud: %w", err)
	}
	c, err := ParseCloud(data)
	if err != nil {
		return Cloud{}, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// ParseCloud reads the description of a custom cloud. Its members are those of
// go-autorest's azure.Environment, which all of Azure's Kubernetes programs read.
func ParseCloud(data []byte) (Cloud, error) {
	var e struct {
		Name          string `json:"name"`
		Authority     string `json:"activeDirectoryEndpoint"`
		Manager       string `json:"resourceManagerEndpoint"`
		Audience      string `json:"serviceManagementEndpoint"`
		TokenAudience string `json:"tokenAudience"`
		Graph         string `json:"microsoftGraphEndpoint"`
		Storage       string `json:"storageEndpointSuffix"`
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return Cloud{}, fmt.Errorf("reading the description of the cloud: %w", err)
	}
	if e.Authority == "" || e.Manager == "" {
		return Cloud{}, errors.New("the description of the cloud needs activeDirectoryEndpoint and resourceManagerEndpoint")
	}
	for member, text := range map[string]string{"activeDirectoryEndpoint": e.Authority, "resourceManagerEndpoint": e.Manager, "microsoftGraphEndpoint": e.Graph} {
		if err := checkEndpoint(text); err != nil {
			return Cloud{}, fmt.Errorf("the description of the cloud: %s: %w", member, err)
		}
	}
	c := Cloud{Name: e.Name, Authority: e.Authority, Manager: e.Manager, ManagerAudience: e.Audience, Graph: strings.TrimSuffix(e.Graph, "/"), Custom: true}
	if c.Name == "" {
		c.Name = Stack
	}
	if c.ManagerAudience == "" {
		c.ManagerAudience = e.TokenAudience
	}
	if e.Storage != "" {
		c.BlobSuffix = "blob." + strings.Trim(e.Storage, ".")
	}
	return c, nil
}

// checkEndpoint refuses what would send a token in clear or to a place that
// two readers read differently. Nothing is no endpoint, which is fine.
func checkEndpoint(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return fmt.Errorf("%q is not a URL", text)
	case u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q must be a URL such as https://host/", text)
	}
	return nil
}

// Configuration is the cloud as Azure's SDK wants it.
func (c Cloud) Configuration() cloud.Configuration {
	audience := c.ManagerAudience
	if audience == "" {
		audience = c.Manager
	}
	return cloud.Configuration{
		ActiveDirectoryAuthorityHost: c.Authority,
		Services: map[cloud.ServiceName]cloud.ServiceConfiguration{
			cloud.ResourceManager: {Endpoint: strings.TrimSuffix(c.Manager, "/"), Audience: audience},
		},
	}
}

// Options are what clients of the cloud are made with. The application, at most
// 24 characters, begins their User-Agent.
func (c Cloud) Options(application string) policy.ClientOptions {
	return policy.ClientOptions{Cloud: c.Configuration(), Telemetry: policy.TelemetryOptions{ApplicationID: application}}
}

// ManagerOptions makes options of a Resource Manager client out of base:
// registering resource providers is not Lanyard's business.
func ManagerOptions(base policy.ClientOptions) *azarm.ClientOptions {
	return &azarm.ClientOptions{ClientOptions: base, DisableRPRegistration: true}
}
