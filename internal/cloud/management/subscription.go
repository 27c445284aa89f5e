package management

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

type subscriptionWire struct {
	ID                   string            `json:"id"`
	AuthorizationSource  string            `json:"authorizationSource"`
	ManagedByTenants     []string          `json:"managedByTenants"`
	SubscriptionID       string            `json:"subscriptionId"`
	TenantID             string            `json:"tenantId"`
	DisplayName          string            `json:"displayName"`
	State                string            `json:"state"`
	SubscriptionPolicies map[string]string `json:"subscriptionPolicies"`
}

func (s Subscription) wire() subscriptionWire {
	return subscriptionWire{
		ID: "/subscriptions/" + s.ID, AuthorizationSource: "RoleBased", ManagedByTenants: []string{},
		SubscriptionID: s.ID, TenantID: s.TenantID, DisplayName: s.DisplayName, State: "Enabled",
		SubscriptionPolicies: map[string]string{"locationPlacementId": "Public_2014-09-01", "quotaId": "PayAsYouGo_2014-09-01", "spendingLimit": "Off"},
	}
}

// sees reports whether the caller has a role assignment on, above or below the subscription: then it is listed.
func (c *call) sees(r rules, sub Subscription) bool {
	scope := azure.Subscription(sub.ID).String()
	for _, a := range r.assignments {
		if a.PrincipalID == c.caller.ObjectID && (azrbac.Covers(scope, a.Scope) || azrbac.Covers(a.Scope, scope)) {
			return true
		}
	}
	return false
}

func (c *call) listSubscriptions() (answer, error) {
	all, err := state.List[Subscription](c.tx, bucketSubscriptions, "")
	if err != nil {
		return answer{}, err
	}
	r, err := loadRules(c.tx)
	if err != nil {
		return answer{}, err
	}
	var items []subscriptionWire
	for _, s := range all {
		if s.TenantID == c.caller.TenantID && c.sees(r, s) {
			items = append(items, s.wire())
		}
	}
	return page(items), nil
}

func (c *call) getSubscription() (answer, error) {
	s, _, err := state.Get[Subscription](c.tx, bucketSubscriptions, azure.Fold(c.id.SubscriptionID))
	if err != nil {
		return answer{}, err
	}
	r, err := loadRules(c.tx)
	if err != nil {
		return answer{}, err
	}
	if !c.sees(r, s) {
		return answer{}, c.require(c.action, c.id.String())
	}
	return ok(s.wire()), nil
}

func (c *call) listTenants() (answer, error) {
	t, _, err := directory.TenantByName(c.tx, c.caller.TenantID)
	if err != nil {
		return answer{}, err
	}
	return page([]any{map[string]any{
		"id": "/tenants/" + t.ID, "tenantId": t.ID, "countryCode": "US", "displayName": t.DisplayName, "domains": []string{t.Domain},
		"defaultDomain": t.Domain, "tenantType": "AAD", "tenantCategory": "Home",
	}}), nil
}

// regions are the locations of this cloud, a choice of the real ones: name, then display name.
func regions() [][2]string {
	return [][2]string{
		{"eastus", "East US"}, {"eastus2", "East US 2"}, {"centralus", "Central US"}, {"westus", "West US"}, {"westus2", "West US 2"}, {"westus3", "West US 3"},
		{"northeurope", "North Europe"}, {"westeurope", "West Europe"}, {"uksouth", "UK South"}, {"francecentral", "France Central"},
		{"germanywestcentral", "Germany West Central"}, {"swedencentral", "Sweden Central"}, {"switzerlandnorth", "Switzerland North"},
		{"southeastasia", "Southeast Asia"}, {"eastasia", "East Asia"}, {"japaneast", "Japan East"}, {"australiaeast", "Australia East"}, {"brazilsouth", "Brazil South"},
	}
}

// normalLocation turns "East US" into "eastus".
func normalLocation(s string) string { return strings.ReplaceAll(strings.ToLower(s), " ", "") }

// location checks the location of a PUT.
func (c *call) location(in *string) (string, error) {
	if in == nil || *in == "" {
		return "", fault(http.StatusBadRequest, "LocationRequired", "The location property is required for this definition.")
	}
	var names []string
	for _, r := range regions() {
		if r[0] == normalLocation(*in) {
			return r[0], nil
		}
		names = append(names, r[0])
	}
	return "", fault(http.StatusBadRequest, "LocationNotAvailableForResourceType", "The provided location '%.100s' is not available for resource type '%s'. List of available regions for the resource type is '%s'.", *in, c.typ.name, strings.Join(names, ","))
}

func (c *call) listLocations() (answer, error) {
	var items []any
	for _, r := range regions() {
		items = append(items, map[string]any{
			"id": c.id.String() + "/locations/" + r[0], "name": r[0], "type": "Region", "displayName": r[1], "regionalDisplayName": r[1],
			"metadata": map[string]any{"regionType": "Physical", "regionCategory": "Recommended"},
		})
	}
	return page(items), nil
}

func (c *call) provider(namespace string) map[string]any {
	var locations []string
	for _, r := range regions() {
		locations = append(locations, r[1])
	}
	kinds := []any{}
	for _, t := range c.types() {
		if ns, rest, _ := strings.Cut(t.name, "/"); ns == namespace {
			kinds = append(kinds, map[string]any{"resourceType": rest, "locations": locations, "apiVersions": t.versions, "capabilities": "None"})
		}
	}
	scope := c.id
	scope.Provider = ""
	return map[string]any{
		"id": strings.TrimSuffix(scope.String(), "/") + "/providers/" + namespace, "namespace": namespace, "registrationState": "Registered",
		"registrationPolicy": "RegistrationRequired", "resourceTypes": kinds,
	}
}

func (c *call) listProviders() (answer, error) {
	var items []any
	for _, ns := range c.types().namespaceNames() {
		items = append(items, c.provider(ns))
	}
	return page(items), nil
}

func (c *call) getProvider() (answer, error) {
	for _, ns := range c.types().namespaceNames() {
		if strings.EqualFold(ns, c.id.Provider) {
			return ok(c.provider(ns)), nil
		}
	}
	return answer{}, fault(http.StatusNotFound, "InvalidResourceNamespace", "The resource namespace '%s' is invalid.", c.id.Provider)
}

// endpoints is the anonymous description of the cloud. Clients disagree about its form: the Azure CLI reads a list
// (2019-05-01), Terraform's provider one object (2022-09-01).
func endpoints(method string, query url.Values) (answer, error) {
	if method != http.MethodGet && method != http.MethodHead {
		return answer{}, notAllowed(method)
	}
	version, given := parameter(query, "api-version")
	if !given || version == "" {
		return answer{}, fault(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
	}
	login := "https://" + azure.HostLogin
	cloud := map[string]any{
		"name": "AzureCloud", "portal": "https://portal.azure.com",
		"authentication": map[string]any{
			"loginEndpoint": login, "tenant": "common", "identityProvider": "AAD",
			"audiences": []string{"https://" + azure.HostManagementClassic + "/", azure.ResourceManagement + "/"},
		},
		"media": "https://rest.media.azure.net", "graphAudience": "https://graph.windows.net/", "graph": "https://graph.windows.net/",
		"suffixes": map[string]string{
			"keyVaultDns": azure.SuffixVault, "storage": "core.windows.net", "acrLoginServer": "azurecr.io", "sqlServerHostname": "database.windows.net",
			"azureDataLakeStoreFileSystem": "azuredatalakestore.net", "azureDataLakeAnalyticsCatalogAndJob": "azuredatalakeanalytics.net",
			"azureFrontDoorEndpointSuffix": "azurefd.net", "storageSyncEndpointSuffix": "afs.azure.net", "mhsmDns": "managedhsm.azure.net",
			"mysqlServerEndpoint": "mysql.database.azure.com", "postgresqlServerEndpoint": "postgres.database.azure.com",
			"mariadbServerEndpoint": "mariadb.database.azure.com", "synapseAnalytics": "dev.azuresynapse.net", "attestationEndpoint": "attest.azure.net",
		},
		"batch": "https://batch.core.windows.net/", "resourceManager": azure.ResourceManagement + "/",
		"vmImageAliasDoc":          "https://raw.githubusercontent.com/Azure/azure-rest-api-specs/master/arm-compute/quickstart-templates/aliases.json",
		"activeDirectoryDataLake":  "https://datalake.azure.net/",
		"sqlManagement":            "https://" + azure.HostManagementClassic + ":8443/",
		"microsoftGraphResourceId": azure.ResourceGraph + "/", "gallery": "https://gallery.azure.com/",
		"appInsightsResourceId": "https://api.applicationinsights.io", "appInsightsTelemetryChannelResourceId": "https://dc.applicationinsights.azure.com/v2/track",
		"attestationResourceId": "https://attest.azure.net", "synapseAnalyticsResourceId": "https://dev.azuresynapse.net",
		"logAnalyticsResourceId": "https://api.loganalytics.io", "ossrDbmsResourceId": "https://ossrdbms-aad.database.windows.net",
	}
	if version < "2022-09-01" {
		return ok([]any{cloud}), nil
	}
	return ok(cloud), nil
}
