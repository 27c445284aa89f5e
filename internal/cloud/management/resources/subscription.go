package resources

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
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

func subscriptionOf(s arm.Subscription) subscriptionWire {
	return subscriptionWire{
		ID: "/subscriptions/" + s.ID, AuthorizationSource: "RoleBased", ManagedByTenants: []string{},
		SubscriptionID: s.ID, TenantID: s.TenantID, DisplayName: s.DisplayName, State: "Enabled",
		SubscriptionPolicies: map[string]string{"locationPlacementId": "Public_2014-09-01", "quotaId": "PayAsYouGo_2014-09-01", "spendingLimit": "Off"},
	}
}

// sees reports whether the caller has a role assignment on, above or below the subscription: then it is listed.
func sees(c *arm.Call, r roles.Rules, sub arm.Subscription) bool {
	scope := azure.Subscription(sub.ID).String()
	for _, a := range r.Assignments {
		if a.PrincipalID == c.Caller.ObjectID && (azrbac.Covers(scope, a.Scope) || azrbac.Covers(a.Scope, scope)) {
			return true
		}
	}
	return false
}

func listSubscriptions(c *arm.Call) (arm.Answer, error) {
	all, err := arm.Subscriptions(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	r, err := roles.Load(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	var items []subscriptionWire
	for _, s := range all {
		if s.TenantID == c.Caller.TenantID && sees(c, r, s) {
			items = append(items, subscriptionOf(s))
		}
	}
	return arm.Page(items), nil
}

func getSubscription(c *arm.Call) (arm.Answer, error) {
	s, _, err := arm.FindSubscription(c.Tx, c.ID.SubscriptionID)
	if err != nil {
		return arm.Answer{}, err
	}
	r, err := roles.Load(c.Tx)
	if err != nil {
		return arm.Answer{}, err
	}
	if !sees(c, r, s) {
		return arm.Answer{}, c.Require(c.Action, c.ID.String())
	}
	return arm.OK(subscriptionOf(s)), nil
}

func listTenants(c *arm.Call) (arm.Answer, error) {
	t, _, err := directory.TenantByName(c.Tx, c.Caller.TenantID)
	if err != nil {
		return arm.Answer{}, err
	}
	return arm.Page([]any{map[string]any{
		"id": "/tenants/" + t.ID, "tenantId": t.ID, "countryCode": "US", "displayName": t.DisplayName, "domains": []string{t.Domain},
		"defaultDomain": t.Domain, "tenantType": "AAD", "tenantCategory": "Home",
	}}), nil
}

func listLocations(c *arm.Call) (arm.Answer, error) {
	var items []any
	for _, r := range arm.Regions() {
		items = append(items, map[string]any{
			"id": c.ID.String() + "/locations/" + r[0], "name": r[0], "type": "Region", "displayName": r[1], "regionalDisplayName": r[1],
			"metadata": map[string]any{"regionType": "Physical", "regionCategory": "Recommended"},
		})
	}
	return arm.Page(items), nil
}

func provider(c *arm.Call, namespace string) map[string]any {
	var locations []string
	for _, r := range arm.Regions() {
		locations = append(locations, r[1])
	}
	kinds := []any{}
	for _, t := range c.Types {
		if ns, rest, _ := strings.Cut(t.Name, "/"); ns == namespace {
			kinds = append(kinds, map[string]any{"resourceType": rest, "locations": locations, "apiVersions": t.Versions, "capabilities": "None"})
		}
	}
	scope := c.ID
	scope.Provider = ""
	return map[string]any{
		"id": strings.TrimSuffix(scope.String(), "/") + "/providers/" + namespace, "namespace": namespace, "registrationState": "Registered",
		"registrationPolicy": "RegistrationRequired", "resourceTypes": kinds,
	}
}

func listProviders(c *arm.Call) (arm.Answer, error) {
	var items []any
	for _, ns := range c.Types.Namespaces() {
		items = append(items, provider(c, ns))
	}
	return arm.Page(items), nil
}

func getProvider(c *arm.Call) (arm.Answer, error) {
	for _, ns := range c.Types.Namespaces() {
		if strings.EqualFold(ns, c.ID.Provider) {
			return arm.OK(provider(c, ns)), nil
		}
	}
	return arm.Answer{}, arm.Fault(http.StatusNotFound, "InvalidResourceNamespace", "The resource namespace '%s' is invalid.", c.ID.Provider)
}

// Endpoints is the anonymous description of the cloud. Clients disagree about its form: the Azure CLI reads a list
// (2019-05-01), Terraform's provider one object (2022-09-01).
func Endpoints(method string, query url.Values) (arm.Answer, error) {
	if method != http.MethodGet && method != http.MethodHead {
		return arm.Answer{}, arm.NotAllowed(method)
	}
	version, given := arm.Parameter(query, "api-version")
	if !given || version == "" {
		return arm.Answer{}, arm.Fault(http.StatusBadRequest, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
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
		return arm.OK([]any{cloud}), nil
	}
	return arm.OK(cloud), nil
}
