// Package directory holds the Entra objects of the local cloud: tenants,
// applications, service principals and federated credentials.
//
//	Tenant ─┬─ Application ── PasswordCredential, KeyCredential
//	        │       │ same AppID            └── FederatedCredential (≤ 20)
//	        ├─ ServicePrincipal (Application)
//	        └─ ServicePrincipal (ManagedIdentity, has a ResourceID)
//	                └── FederatedCredential (≤ 20)
//
// Every function takes the transaction first, so that a caller can change
// other things (an ARM resource, a role assignment) in the same one. Object
// and application ids are GUIDs and compared without case; names of
// federated credentials and ARM ids too, but their spelling is kept.
//
// What is stored of a client secret is its hash. Check tells whether the
// objects still agree with each other; tests call it after every mutation.
package directory

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// What callers branch on. The wrapped text says which object and why.
var (
	// ErrNotFound: the tenant, application or service principal does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists: an object with this unique name is there already.
	ErrExists = errors.New("already exists")
	// ErrInvalid: a value is refused; the text says what to change.
	ErrInvalid = errors.New("invalid value")
)

// The kinds of a service principal, as Graph spells them.
const (
	TypeApplication     = "Application"
	TypeManagedIdentity = "ManagedIdentity"
)

// A Tenant is one Entra directory.
type Tenant struct {
	ID          string // GUID
	DisplayName string
	Domain      string // verified domain, such as contoso.onmicrosoft.com
}

// An Application is an app registration.
type Application struct {
	ObjectID       string
	AppID          string // client id
	TenantID       string
	DisplayName    string
	IdentifierURIs []string // as resources in scopes: api://..., https://...
	// TokenVersion is the version of the access tokens that this
	// application accepts as a resource: 1 or 2 (Graph's
	// accessTokenAcceptedVersion; 0 means 1).
	TokenVersion int
	Passwords    []PasswordCredential
	Keys         []KeyCredential

	Created        time.Time `json:",omitzero"`  // zero if nobody noted it
	SignInAudience string    `json:",omitempty"` // "" means AzureADMyOrg
	Owners         []string  `json:",omitempty"` // object ids of service principals
	Settings       Settings  `json:",omitempty"`
}

// A ServicePrincipal is what roles are assigned to.
type ServicePrincipal struct {
	ID          string // object id; ARM calls it principalId
	AppID       string // client id
	TenantID    string
	DisplayName string
	Type        string // TypeApplication or TypeManagedIdentity
	// ResourceID is the ARM id of a managed identity: of the user-assigned
	// identity, or of the machine that a system-assigned one belongs to.
	ResourceID string

	// Permissions are the permissions of Microsoft Graph that it was granted
	// (Graph's app roles, by name), DirectoryRoles the template ids of its
	// directory roles, Owners the object ids of service principals.
	Permissions    []string `json:",omitempty"`
	DirectoryRoles []string `json:",omitempty"`
	Owners         []string `json:",omitempty"`
}

// UserAssigned reports whether the principal is a user-assigned managed
// identity. System-assigned ones carry the ARM id of their machine.
func (p ServicePrincipal) UserAssigned() bool {
	return p.Type == TypeManagedIdentity &&
		strings.Contains(strings.ToLower(p.ResourceID), "/providers/microsoft.managedidentity/userassignedidentities/")
}

// The buckets. Index buckets hold the object id under another unique key.
const (
	bucketTenants      = "tenants"
	bucketHome         = "tenantHome" // one key, "home": id of the first tenant
	bucketApps         = "applications"
	bucketPrincipals   = "servicePrincipals"
	bucketFederated    = "federatedCredentials" // key: parent object id / folded name
	indexAppID         = "applicationsByAppID"
	indexURI           = "applicationsByURI"
	indexPrincipalApp  = "servicePrincipalsByAppID"
	indexPrincipalARM  = "servicePrincipalsByResource"
	homeKey            = "home"
	maxNameLength      = 256
	defaultDomainLabel = ".onmicrosoft.com"
)

// PutTenant creates or changes a tenant. An empty ID means a new one, an
// empty Domain one made from the display name. The first tenant is the home
// tenant, in which all applications and identities are created.
func PutTenant(tx *state.Tx, t Tenant) (Tenant, error) {
	t.ID = fold(t.ID)
	if t.ID == "" {
		t.ID = uuid.NewString()
	}
	if err := uuid.Validate(t.ID); err != nil || len(t.ID) != 36 {
		return Tenant{}, fmt.Errorf("tenant id %q is not a GUID: %w", t.ID, ErrInvalid)
	}
	if t.DisplayName == "" || len(t.DisplayName) > maxNameLength {
		return Tenant{}, fmt.Errorf("tenant display name must have 1 to %d characters: %w", maxNameLength, ErrInvalid)
	}
	if t.Domain == "" {
		t.Domain = domainLabel(t.DisplayName) + defaultDomainLabel
	}
	t.Domain = fold(t.Domain)
	if !validDomain(t.Domain) {
		return Tenant{}, fmt.Errorf("tenant domain %q is not a domain name such as contoso.onmicrosoft.com: %w", t.Domain, ErrInvalid)
	}
	other, ok, err := TenantByName(tx, t.Domain)
	if err != nil {
		return Tenant{}, err
	}
	if ok && other.ID != t.ID {
		return Tenant{}, fmt.Errorf("tenant domain %q belongs to tenant %s: %w", t.Domain, other.ID, ErrExists)
	}
	_, ok, err = state.Get[string](tx, bucketHome, homeKey)
	if err != nil {
		return Tenant{}, err
	}
	if !ok {
		if err := state.Put(tx, bucketHome, homeKey, t.ID); err != nil {
			return Tenant{}, err
		}
	}
	return t, state.Put(tx, bucketTenants, t.ID, t)
}

// HomeTenant reads the first tenant. The error is ErrNotFound while there
// is none.
func HomeTenant(tx *state.Tx) (Tenant, error) {
	id, ok, err := state.Get[string](tx, bucketHome, homeKey)
	if err != nil {
		return Tenant{}, err
	}
	if !ok {
		return Tenant{}, fmt.Errorf("this cloud has no tenant yet: %w", ErrNotFound)
	}
	t, ok, err := state.Get[Tenant](tx, bucketTenants, id)
	if err == nil && !ok {
		err = fmt.Errorf("home tenant %s: %w", id, ErrNotFound)
	}
	return t, err
}

// TenantByName finds a tenant by its id or domain, as they stand in a path.
func TenantByName(tx *state.Tx, name string) (Tenant, bool, error) {
	name = fold(name)
	if t, ok, err := get[Tenant](tx, bucketTenants, name); ok || err != nil {
		return t, ok, err
	}
	ts, err := Tenants(tx)
	if err != nil {
		return Tenant{}, false, err
	}
	for _, t := range ts {
		if t.Domain == name {
			return t, true, nil
		}
	}
	return Tenant{}, false, nil
}

// Tenants lists all tenants.
func Tenants(tx *state.Tx) ([]Tenant, error) { return state.List[Tenant](tx, bucketTenants, "") }

// CreateApplication registers an application in the home tenant together
// with its service principal. Display names need not be unique.
func CreateApplication(tx *state.Tx, displayName string) (Application, ServicePrincipal, error) {
	app, err := RegisterApplication(tx, displayName)
	if err != nil {
		return Application{}, ServicePrincipal{}, err
	}
	sp, err := CreateServicePrincipal(tx, app.AppID)
	return app, sp, err
}

// ApplicationByID finds an application by its object id.
func ApplicationByID(tx *state.Tx, objectID string) (Application, bool, error) {
	return get[Application](tx, bucketApps, objectID)
}

// ApplicationByAppID finds an application by its client id.
func ApplicationByAppID(tx *state.Tx, appID string) (Application, bool, error) {
	return indexed[Application](tx, indexAppID, bucketApps, appID)
}

// ApplicationByURI finds the application whose IdentifierURIs contain uri.
func ApplicationByURI(tx *state.Tx, uri string) (Application, bool, error) {
	return indexed[Application](tx, indexURI, bucketApps, uri)
}

// Applications lists all applications.
func Applications(tx *state.Tx) ([]Application, error) {
	return state.List[Application](tx, bucketApps, "")
}

// SetIdentifierURIs replaces the resource names of an application. A name
// that another application has is refused with ErrExists.
func SetIdentifierURIs(tx *state.Tx, appObjectID string, uris ...string) error {
	app, err := application(tx, appObjectID)
	if err != nil {
		return err
	}
	for _, u := range app.IdentifierURIs {
		if err := state.Delete(tx, indexURI, fold(u)); err != nil {
			return err
		}
	}
	for _, u := range uris {
		if !validIdentifierURI(u) {
			return fmt.Errorf("identifier URI %q must be an absolute URI (api://name, https://name) without query or fragment: %w", u, ErrInvalid)
		}
		owner, taken, err := state.Get[string](tx, indexURI, fold(u))
		if err != nil {
			return err
		}
		if taken {
			return fmt.Errorf("identifier URI %q belongs to application %s: %w", u, owner, ErrExists)
		}
		if err := state.Put(tx, indexURI, fold(u), app.ObjectID); err != nil {
			return err
		}
	}
	app.IdentifierURIs = append([]string(nil), uris...)
	return putApplication(tx, app)
}

// SetTokenVersion chooses the version (1 or 2) of the access tokens for
// this application as a resource.
func SetTokenVersion(tx *state.Tx, appObjectID string, version int) error {
	if version != 1 && version != 2 {
		return fmt.Errorf("token version %d must be 1 or 2: %w", version, ErrInvalid)
	}
	app, err := application(tx, appObjectID)
	if err != nil {
		return err
	}
	app.TokenVersion = version
	return putApplication(tx, app)
}

// CreateManagedIdentity creates the service principal of the managed
// identity with this ARM id in the home tenant, with new object and client
// ids. One ARM id has one principal: a second call is refused with ErrExists.
func CreateManagedIdentity(tx *state.Tx, resourceID string) (ServicePrincipal, error) {
	var none ServicePrincipal
	name := resourceID[strings.LastIndexByte(resourceID, '/')+1:]
	if !strings.HasPrefix(resourceID, "/subscriptions/") || name == "" {
		return none, fmt.Errorf("managed identity needs the ARM id of its resource, not %q: %w", resourceID, ErrInvalid)
	}
	old, taken, err := state.Get[string](tx, indexPrincipalARM, fold(resourceID))
	if err != nil {
		return none, err
	}
	if taken {
		return none, fmt.Errorf("managed identity %s is principal %s: %w", resourceID, old, ErrExists)
	}
	home, err := HomeTenant(tx)
	if err != nil {
		return none, err
	}
	sp := ServicePrincipal{
		ID: uuid.NewString(), AppID: uuid.NewString(), TenantID: home.ID,
		DisplayName: name, Type: TypeManagedIdentity, ResourceID: resourceID,
	}
	return sp, putPrincipal(tx, sp)
}

// ServicePrincipalByID finds a service principal by its object id.
func ServicePrincipalByID(tx *state.Tx, id string) (ServicePrincipal, bool, error) {
	return get[ServicePrincipal](tx, bucketPrincipals, id)
}

// ServicePrincipalByAppID finds a service principal by its client id.
func ServicePrincipalByAppID(tx *state.Tx, appID string) (ServicePrincipal, bool, error) {
	return indexed[ServicePrincipal](tx, indexPrincipalApp, bucketPrincipals, appID)
}

// ServicePrincipalByResource finds a managed identity by its ARM id.
func ServicePrincipalByResource(tx *state.Tx, resourceID string) (ServicePrincipal, bool, error) {
	return indexed[ServicePrincipal](tx, indexPrincipalARM, bucketPrincipals, resourceID)
}

// ServicePrincipals lists all service principals.
func ServicePrincipals(tx *state.Tx) ([]ServicePrincipal, error) {
	return state.List[ServicePrincipal](tx, bucketPrincipals, "")
}

// DeleteServicePrincipal removes a service principal; with a managed
// identity also its federated credentials. The application of an
// application's principal stays. It reports false if there was none.
func DeleteServicePrincipal(tx *state.Tx, id string) (bool, error) {
	sp, ok, err := ServicePrincipalByID(tx, id)
	if err != nil || !ok {
		return false, err
	}
	if err := deleteFederated(tx, sp.ID); err != nil {
		return false, err
	}
	if sp.ResourceID != "" {
		if err := state.Delete(tx, indexPrincipalARM, fold(sp.ResourceID)); err != nil {
			return false, err
		}
	}
	if err := state.Delete(tx, indexPrincipalApp, sp.AppID); err != nil {
		return false, err
	}
	return true, state.Delete(tx, bucketPrincipals, sp.ID)
}

func application(tx *state.Tx, objectID string) (Application, error) {
	app, ok, err := ApplicationByID(tx, objectID)
	if err == nil && !ok {
		err = fmt.Errorf("application with object id %q: %w", objectID, ErrNotFound)
	}
	return app, err
}

func putApplication(tx *state.Tx, app Application) error {
	return state.Put(tx, bucketApps, app.ObjectID, app)
}

func putPrincipal(tx *state.Tx, sp ServicePrincipal) error {
	if sp.ResourceID != "" {
		if err := state.Put(tx, indexPrincipalARM, fold(sp.ResourceID), sp.ID); err != nil {
			return err
		}
	}
	if err := state.Put(tx, indexPrincipalApp, sp.AppID, sp.ID); err != nil {
		return err
	}
	return state.Put(tx, bucketPrincipals, sp.ID, sp)
}

func get[T any](tx *state.Tx, bucket, key string) (T, bool, error) {
	return state.Get[T](tx, bucket, fold(key))
}

func indexed[T any](tx *state.Tx, index, bucket, key string) (T, bool, error) {
	var none T
	id, ok, err := state.Get[string](tx, index, fold(key))
	if err != nil || !ok {
		return none, false, err
	}
	return state.Get[T](tx, bucket, id)
}

func fold(s string) string { return strings.ToLower(s) }
