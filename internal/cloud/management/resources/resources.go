// Package resources is the resource provider Microsoft.Resources: tenants, subscriptions, resource groups, lists across
// types, and the description of the cloud.
package resources

import (
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
)

// Types are the provider's resource types.
func Types() []*arm.Type {
	versions := []string{"2022-09-01", "2021-04-01", "2020-06-01"}
	return []*arm.Type{
		{Name: arm.TypeTenants, Place: arm.Plain, Open: true, List: listTenants, Versions: versions},
		{Name: azure.TypeSubscription, Place: arm.Plain, Open: true, List: listSubscriptions, Get: getSubscription, Versions: versions},
		{Name: arm.TypeLocations, Place: arm.Plain, List: listLocations, Versions: versions},
		{Name: arm.TypeProviders, Place: arm.Plain, Open: true, List: listProviders, Get: getProvider, Versions: versions,
			Post: map[string]arm.Handler{"": getProvider}}, // everything is registered already
		{Name: arm.TypeResources, Place: arm.Plain, Open: true, List: listResources, Versions: versions},
		{Name: azure.TypeResourceGroup, Actions: "Microsoft.Resources/subscriptions/resourceGroups", Place: arm.Plain, Open: true, Versions: versions,
			List: listGroups, Get: getGroup, Put: putGroup, Patch: patchGroup, Delete: deleteGroup},
	}
}
