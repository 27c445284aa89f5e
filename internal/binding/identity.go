package binding

import (
	"fmt"
	"strings"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
)

// managedIdentity is the resource type of user-assigned identities.
const managedIdentity = "Microsoft.ManagedIdentity/userAssignedIdentities"

// ManagedIdentity parses the resource id of a user-assigned identity. The error
// says what the AzureIdentity should hold instead.
func ManagedIdentity(id *v1.AzureIdentity) (azure.ResourceID, error) {
	if id.Spec.ResourceID == "" {
		return azure.ResourceID{}, &ResourceIDError{ID: ""}
	}
	parsed, err := azure.ParseResourceID(id.Spec.ResourceID)
	if err != nil {
		return azure.ResourceID{}, &ResourceIDError{ID: id.Spec.ResourceID, Err: err}
	}
	if !parsed.Is(managedIdentity) || parsed.SubscriptionID == "" || parsed.ResourceGroup == "" || parsed.Extends != nil {
		return azure.ResourceID{}, &ResourceIDError{ID: id.Spec.ResourceID}
	}
	return parsed, nil
}

// A ResourceIDError is a spec.resourceID that names no user-assigned identity.
type ResourceIDError struct {
	ID  string
	Err error // nil if the id is well-formed but of something else
}

func (e *ResourceIDError) Error() string {
	const want = "it must be /subscriptions/{id}/resourceGroups/{group}/providers/" + managedIdentity + "/{name}; `az identity show --name NAME --resource-group GROUP --query id` prints it"
	switch {
	case e.ID == "":
		return "spec.resourceID is empty: " + want
	case e.Err != nil:
		return "spec.resourceID: " + e.Err.Error() + ": " + want
	default:
		return "spec.resourceID " + quote(e.ID) + " is not a user-assigned identity: " + want
	}
}

// Unwrap returns the parser's error.
func (e *ResourceIDError) Unwrap() error { return e.Err }

// quote keeps foreign input short.
func quote(s string) string {
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return `"` + s + `"`
}

// Valid returns nil if the identity can be used as it is written. The error says
// what the AzureIdentity should hold.
func Valid(id *v1.AzureIdentity) error {
	switch s := &id.Spec; s.Type {
	case v1.UserAssignedMSI:
		if wellFormed(s.ResourceID) {
			return nil
		}
		_, err := ManagedIdentity(id)
		return err
	case v1.ServicePrincipal, v1.ServicePrincipalCertificate:
		switch {
		case s.TenantID == "":
			return fmt.Errorf("spec.tenantID is empty: a service principal (type %d) needs the tenant that it is of", s.Type)
		case s.ClientID == "":
			return fmt.Errorf("spec.clientID is empty: a service principal (type %d) needs its application (client) id", s.Type)
		case s.ClientPassword.Name == "":
			return fmt.Errorf("spec.clientPassword.name is empty: it must name the Secret that holds the credential of a service principal (type %d)", s.Type)
		case len(s.AuxiliaryTenantIDs) > maxAuxiliaryTenants:
			return fmt.Errorf("spec.auxiliaryTenantIDs has %d entries: Entra accepts at most %d", len(s.AuxiliaryTenantIDs), maxAuxiliaryTenants)
		}
		return nil
	default:
		return &TypeError{Type: s.Type}
	}
}

// maxAuxiliaryTenants is what ARM accepts in x-ms-authorization-auxiliary.
const maxAuxiliaryTenants = 3

// A TypeError is a spec.type that does not exist.
type TypeError struct{ Type v1.IdentityType }

func (e *TypeError) Error() string {
	return fmt.Sprintf("spec.type %d does not exist: 0 is a user-assigned managed identity, 1 a service principal with a password, 2 one with a certificate", e.Type)
}

// wellFormed is a quick yes of ManagedIdentity, without garbage: the path of each
// request comes here. A no means that the parser has to decide.
func wellFormed(id string) bool {
	const literals = "/subscriptions/*/resourcegroups/*/providers/microsoft.managedidentity/userassignedidentities/*"
	rest, want := id, literals
	for want != "" {
		if len(rest) < 2 || rest[0] != '/' {
			return false
		}
		segment, literal := rest[1:], want[1:]
		if i := strings.IndexByte(segment, '/'); i >= 0 {
			segment = segment[:i]
		}
		if i := strings.IndexByte(literal, '/'); i >= 0 {
			literal = literal[:i]
		}
		rest, want = rest[1+len(segment):], want[1+len(literal):]
		if literal == "*" && !plain(segment) || literal != "*" && !sameFolded(segment, literal) {
			return false
		}
	}
	return rest == ""
}

// plain reports whether a name is one by the strictest of rules.
func plain(s string) bool {
	if s == "" || len(s) > 260 || s[0] == '.' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.', c == '(', c == ')':
		default:
			return false
		}
	}
	return true
}

// sameFolded compares as azure.Fold does, without garbage.
func sameFolded(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		x, y := a[i], b[i]
		if 'A' <= x && x <= 'Z' {
			x += 'a' - 'A'
		}
		if 'A' <= y && y <= 'Z' {
			y += 'a' - 'A'
		}
		if x != y {
			return false
		}
	}
	return true
}

// sameResource reports whether two resource ids are of the same user-assigned
// identity; what is no id is the same as nothing.
func sameResource(a, b string) bool {
	if wellFormed(a) && wellFormed(b) {
		return sameFolded(a, b)
	}
	x, err := azure.ParseResourceID(a)
	if err != nil {
		return false
	}
	y, err := azure.ParseResourceID(b)
	return err == nil && x.Equal(y)
}
