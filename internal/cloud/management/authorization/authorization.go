// Package authorization is the resource provider Microsoft.Authorization: role assignments and role definitions. What
// they mean is decided by its neighbour roles.
package authorization

import (
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
)

// Types are the provider's resource types.
func Types() []*arm.Type {
	versions := []string{"2022-04-01", "2020-04-01-preview", "2018-01-01-preview"}
	return []*arm.Type{
		{Name: azure.TypeRoleAssignment, Place: arm.Anywhere, Versions: versions,
			List: listAssignments, Get: getAssignment, Put: putAssignment, Delete: deleteAssignment},
		{Name: azure.TypeRoleDefinition, Place: arm.Anywhere, Versions: versions, Open: true,
			List: listDefinitions, Get: getDefinition, Put: putDefinition, Delete: deleteDefinition},
	}
}
