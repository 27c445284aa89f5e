package arm

import (
	"net/http"
	"strings"
)

// Regions are the locations of this cloud, a choice of the real ones: name, then display name.
func Regions() [][2]string {
	return [][2]string{
		{"eastus", "East US"}, {"eastus2", "East US 2"}, {"centralus", "Central US"}, {"westus", "West US"}, {"westus2", "West US 2"}, {"westus3", "West US 3"},
		{"northeurope", "North Europe"}, {"westeurope", "West Europe"}, {"uksouth", "UK South"}, {"francecentral", "France Central"},
		{"germanywestcentral", "Germany West Central"}, {"swedencentral", "Sweden Central"}, {"switzerlandnorth", "Switzerland North"},
		{"southeastasia", "Southeast Asia"}, {"eastasia", "East Asia"}, {"japaneast", "Japan East"}, {"australiaeast", "Australia East"}, {"brazilsouth", "Brazil South"},
	}
}

// NormalLocation turns "East US" into "eastus".
func NormalLocation(s string) string { return strings.ReplaceAll(strings.ToLower(s), " ", "") }

// Location checks the location of a PUT.
func (c *Call) Location(in *string) (string, error) {
	if in == nil || *in == "" {
		return "", Fault(http.StatusBadRequest, "LocationRequired", "The location property is required for this definition.")
	}
	var names []string
	for _, r := range Regions() {
		if r[0] == NormalLocation(*in) {
			return r[0], nil
		}
		names = append(names, r[0])
	}
	return "", Fault(http.StatusBadRequest, "LocationNotAvailableForResourceType", "The provided location '%.100s' is not available for resource type '%s'. List of available regions for the resource type is '%s'.", *in, c.Type.Name, strings.Join(names, ","))
}
