package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/registration"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A Seed is what a cloud should contain. All of it is in one subscription
// and one resource group.
type Seed struct {
	// Tenant is the home tenant. An empty ID means the one that exists, or
	// a new one; an empty DisplayName means "Contoso".
	Tenant           directory.Tenant
	SubscriptionID   string // GUID; empty means one derived from the tenant
	SubscriptionName string // empty means "Lanyard"
	ResourceGroup    string // must be set
	Location         string // empty means eastus

	Identities   []SeedIdentity
	ScaleSets    []SeedScaleSet
	Vaults       []SeedVault
	Accounts     []SeedAccount
	Applications []SeedApplication
	Roles        []SeedRole
}

// A SeedIdentity is a user-assigned managed identity.
type SeedIdentity struct {
	Name      string
	Federated []directory.FederatedCredential
}

// A SeedScaleSet is a virtual machine scale set: the nodes of a cluster.
type SeedScaleSet struct {
	Name       string
	Instances  int
	Identities []string // names in Seed.Identities that it starts with
}

// A SeedVault is a key vault that uses role assignments.
type SeedVault struct {
	Name    string
	Secrets map[string]string // values; what the vault has already stays
}

// A SeedAccount is a storage account. Its owner may do everything with its
// blobs.
type SeedAccount struct {
	Name   string
	Public bool // whether containers can be opened to everybody
}

// A SeedApplication is an app registration with a client secret or a
// certificate, found again by its display name.
type SeedApplication struct {
	Name           string
	IdentifierURIs []string
	TokenVersion   int // of the access tokens for it as a resource: 1 or 2; 0 means as it is
	Federated      []directory.FederatedCredential
	Certificate    bool // a certificate instead of a client secret
	// Permissions are what it may do in Microsoft Graph: azure.Permission...
	// Owners are names of applications of the seed that own it: with
	// Application.ReadWrite.OwnedBy they may change it.
	Permissions []string
	Owners      []string
	// NewSecret makes a new one although there is one, which goes. For
	// callers that did not keep it.
	NewSecret bool
}

// A SeedRole is a role assignment.
type SeedRole struct {
	To   string // name of an identity or application of the seed
	Role string // id of the role definition: a GUID, azure.Role...
	// On is an ARM id; "" means the resource group, and a path without a
	// leading slash (providers/Microsoft.KeyVault/vaults/demo) is below it.
	On string
}

// OperatorName is the application that owns the subscription: who a person
// is who signs in to the local cloud.
const OperatorName = "lanyard-operator"

// Seeded tells the ids of what a seed asked for.
type Seeded struct {
	Tenant          directory.Tenant
	SubscriptionID  string
	ResourceGroupID string // ARM id
	Operator        Principal
	Identities      map[string]Principal
	Applications    map[string]Principal
	ScaleSets       map[string]string // ARM ids
	Vaults          map[string]string // URLs
	Accounts        map[string]string // URLs of their blobs
}

// A Principal is an identity or application.
type Principal struct {
	ClientID    string
	PrincipalID string
	ResourceID  string // ARM id; empty for applications
	// Secret is the client secret, or the certificate with its key as PEM;
	// only if this call made it, because it cannot be read again.
	Secret Secret
}

// A Secret is text that does not print itself. string(s) is the value.
type Secret = registration.Secret

// Seed makes what the seed asks for and is not there yet; what exists stays
// as it is, except that federated credentials and identifier URIs are set as
// given. Resources and vault secrets are made by requests of the operator to
// this cloud's own hosts, so they obey the same rules as anybody's. The
// first step, the tenant and the operator who owns the subscription, is
// what a purchase is in Azure and has no request.
func (c *Cloud) Seed(ctx context.Context, seed Seed) (Seeded, error) {
	s := &seeder{Cloud: c, seed: seed}
	s.out = Seeded{Identities: map[string]Principal{}, Applications: map[string]Principal{}, ScaleSets: map[string]string{}, Vaults: map[string]string{}, Accounts: map[string]string{}}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"checking the seed", s.check},
		{"tenant and applications", s.directory},
		{"subscription", s.subscription},
		{"resource group", s.group},
		{"identities", s.identities},
		{"scale sets", s.scaleSets},
		{"vaults", s.vaults},
		{"storage accounts", s.accounts},
		{"roles", s.roles},
		{"secrets", s.secrets},
	} {
		if err := step.do(ctx); err != nil {
			return Seeded{}, fmt.Errorf("seeding the cloud: %s: %w", step.name, err)
		}
	}
	return s.out, nil
}

type seeder struct {
	*Cloud
	seed Seed
	out  Seeded
}

func (s *seeder) check(context.Context) error {
	if s.seed.ResourceGroup == "" {
		return errors.New("the resource group's name is missing")
	}
	if s.seed.SubscriptionID != "" && uuid.Validate(s.seed.SubscriptionID) != nil {
		return fmt.Errorf("subscription id %q is not a GUID", s.seed.SubscriptionID)
	}
	if s.seed.Location == "" {
		s.seed.Location = "eastus"
	}
	if s.seed.SubscriptionName == "" {
		s.seed.SubscriptionName = "Lanyard"
	}
	names := map[string]bool{OperatorName: true}
	add := func(name string) error {
		if name == "" || names[name] {
			return fmt.Errorf("name %q is empty, taken, or there twice among identities and applications", name)
		}
		names[name] = true
		return nil
	}
	for _, i := range s.seed.Identities {
		if err := add(i.Name); err != nil {
			return err
		}
	}
	for _, a := range s.seed.Applications {
		if err := add(a.Name); err != nil {
			return err
		}
	}
	for _, a := range s.seed.Applications {
		for _, owner := range a.Owners {
			if !slices.ContainsFunc(s.seed.Applications, func(o SeedApplication) bool { return o.Name == owner }) {
				return fmt.Errorf("application %s is owned by %q, which is no application of the seed", a.Name, owner)
			}
		}
	}
	for _, r := range s.seed.Roles {
		if !names[r.To] || r.To == OperatorName {
			return fmt.Errorf("role %s is given to %q, which is no identity or application of the seed", r.Role, r.To)
		}
	}
	for _, set := range s.seed.ScaleSets {
		for _, name := range set.Identities {
			if !slices.ContainsFunc(s.seed.Identities, func(i SeedIdentity) bool { return i.Name == name }) {
				return fmt.Errorf("scale set %s has identity %q, which is not in the seed", set.Name, name)
			}
		}
	}
	return nil
}

// directory makes the objects that ARM does not know: the tenant and the
// applications, the operator among them.
func (s *seeder) directory(context.Context) error {
	return s.db.Update(func(tx *state.Tx) error {
		if err := s.tenant(tx); err != nil {
			return err
		}
		var err error
		if s.out.Operator, err = s.application(tx, SeedApplication{Name: OperatorName}); err != nil {
			return err
		}
		if err := directory.SetAccess(tx, s.out.Operator.PrincipalID, nil, []string{azure.DirectoryRoleGlobalAdministrator}); err != nil {
			return err
		}
		for _, a := range s.seed.Applications {
			if s.out.Applications[a.Name], err = s.application(tx, a); err != nil {
				return fmt.Errorf("application %s: %w", a.Name, err)
			}
		}
		return s.owners(tx)
	})
}

// owners adds the owners of applications; those that are there stay.
func (s *seeder) owners(tx *state.Tx) error {
	for _, a := range s.seed.Applications {
		app, _, err := directory.ApplicationByAppID(tx, s.out.Applications[a.Name].ClientID)
		if err != nil {
			return err
		}
		for _, name := range a.Owners {
			owner := s.out.Applications[name].PrincipalID
			if _, err := directory.UpdateApplication(tx, app.ObjectID, func(app *directory.Application) {
				if !slices.Contains(app.Owners, owner) {
					app.Owners = append(app.Owners, owner)
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *seeder) tenant(tx *state.Tx) error {
	home, err := directory.HomeTenant(tx)
	if err == nil {
		if want := s.seed.Tenant.ID; want != "" && !strings.EqualFold(want, home.ID) {
			return fmt.Errorf("the state directory belongs to tenant %s, not %s: use that id, or another directory", home.ID, want)
		}
		s.out.Tenant = home
		return nil
	}
	if !errors.Is(err, directory.ErrNotFound) {
		return err
	}
	t := s.seed.Tenant
	if t.DisplayName == "" {
		t.DisplayName = "Contoso"
	}
	s.out.Tenant, err = directory.PutTenant(tx, t)
	return err
}

const (
	secretName     = "seed"
	secretLifetime = 2 * 365 * 24 * time.Hour
)

func (s *seeder) application(tx *state.Tx, a SeedApplication) (Principal, error) {
	found, err := registration.Ensure(tx, a.Name)
	if err != nil {
		return Principal{}, err
	}
	p := Principal{ClientID: found.ClientID, PrincipalID: found.PrincipalID}
	app, _, err := directory.ApplicationByID(tx, found.ObjectID)
	if err != nil {
		return Principal{}, err
	}
	prove := s.secret
	if a.Certificate {
		prove = s.certificate
	}
	if p.Secret, err = prove(tx, app, a.NewSecret); err != nil {
		return Principal{}, err
	}
	if a.IdentifierURIs != nil {
		if err := directory.SetIdentifierURIs(tx, app.ObjectID, a.IdentifierURIs...); err != nil {
			return Principal{}, err
		}
	}
	if a.TokenVersion != 0 {
		if err := directory.SetTokenVersion(tx, app.ObjectID, a.TokenVersion); err != nil {
			return Principal{}, err
		}
	}
	if a.Permissions != nil {
		if err := directory.SetAccess(tx, found.PrincipalID, a.Permissions, nil); err != nil {
			return Principal{}, err
		}
	}
	for _, fc := range a.Federated {
		if _, err := directory.PutFederatedCredential(tx, app.ObjectID, fc); err != nil {
			return Principal{}, fmt.Errorf("federated credential %s: %w", fc.Name, err)
		}
	}
	return p, nil
}

// secret makes a client secret if the application has none of a seed that
// is still good, or if renew says so.
func (s *seeder) secret(tx *state.Tx, app directory.Application, renew bool) (Secret, error) {
	now := s.now()
	for _, p := range app.Passwords {
		if p.DisplayName != secretName {
			continue
		}
		if !renew && now.Before(p.NotAfter) {
			return "", nil
		}
		if _, err := directory.RemovePassword(tx, app.ObjectID, p.KeyID); err != nil {
			return "", err
		}
	}
	p, err := registration.AddPassword(tx, app.ObjectID, secretName, now.Add(secretLifetime))
	return p.Secret, err
}

// certificate does the same with a certificate.
func (s *seeder) certificate(tx *state.Tx, app directory.Application, renew bool) (Secret, error) {
	now := s.now()
	for _, k := range app.Keys {
		if k.DisplayName != secretName {
			continue
		}
		if !renew && now.Before(k.NotAfter) {
			return "", nil
		}
		if err := directory.RemoveCertificate(tx, app.ObjectID, k.KeyID); err != nil {
			return "", err
		}
	}
	c, err := registration.IssueCertificate(tx, app.ObjectID, secretName, now, secretLifetime)
	if err != nil {
		return "", err
	}
	return c.PEM()
}

func (s *seeder) subscription(ctx context.Context) error {
	s.out.SubscriptionID = strings.ToLower(s.seed.SubscriptionID)
	if s.out.SubscriptionID == "" {
		s.out.SubscriptionID = derived(s.out.Tenant.ID, "subscription")
	}
	return s.management.CreateSubscription(ctx, arm.Subscription{
		ID: s.out.SubscriptionID, TenantID: s.out.Tenant.ID, DisplayName: s.seed.SubscriptionName,
	}, s.out.Operator.PrincipalID)
}

func (s *seeder) group(ctx context.Context) error {
	s.out.ResourceGroupID = "/subscriptions/" + s.out.SubscriptionID + "/resourceGroups/" + s.seed.ResourceGroup
	return s.ensure(ctx, s.out.ResourceGroupID, map[string]any{}, nil)
}

func (s *seeder) identities(ctx context.Context) error {
	for _, i := range s.seed.Identities {
		id := s.resource(azure.TypeManagedIdentity, i.Name)
		var got struct {
			ID         string
			Properties struct{ ClientID, PrincipalID string }
		}
		if err := s.ensure(ctx, id, map[string]any{}, &got); err != nil {
			return err
		}
		s.out.Identities[i.Name] = Principal{ClientID: got.Properties.ClientID, PrincipalID: got.Properties.PrincipalID, ResourceID: id}
		for _, fc := range i.Federated {
			body := map[string]any{"properties": map[string]any{"issuer": fc.Issuer, "subject": fc.Subject, "audiences": fc.Audiences}}
			if err := s.arm(ctx, http.MethodPut, id+"/federatedIdentityCredentials/"+fc.Name, body, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *seeder) scaleSets(ctx context.Context) error {
	for _, set := range s.seed.ScaleSets {
		body := map[string]any{"sku": map[string]any{"name": "Standard_D2s_v5", "tier": "Standard", "capacity": max(set.Instances, 1)}, "properties": map[string]any{}}
		if len(set.Identities) > 0 {
			user := map[string]any{}
			for _, name := range set.Identities {
				user[s.out.Identities[name].ResourceID] = map[string]any{}
			}
			body["identity"] = map[string]any{"type": "UserAssigned", "userAssignedIdentities": user}
		}
		id := s.resource(azure.TypeVirtualMachineScaleSet, set.Name)
		if err := s.ensure(ctx, id, body, nil); err != nil {
			return err
		}
		s.out.ScaleSets[set.Name] = id
	}
	return nil
}

func (s *seeder) vaults(ctx context.Context) error {
	for _, v := range s.seed.Vaults {
		body := map[string]any{"properties": map[string]any{
			"tenantId": s.out.Tenant.ID, "sku": map[string]any{"family": "A", "name": "standard"}, "enableRbacAuthorization": true,
		}}
		id := s.resource(azure.TypeVault, v.Name)
		if err := s.ensure(ctx, id, body, nil); err != nil {
			return err
		}
		s.out.Vaults[v.Name] = "https://" + strings.ToLower(v.Name) + "." + azure.SuffixVault
		// Owner of the subscription says nothing about a vault's contents.
		if err := s.assign(ctx, s.out.Operator.PrincipalID, azure.RoleKeyVaultAdministrator, id); err != nil {
			return err
		}
	}
	return nil
}

func (s *seeder) accounts(ctx context.Context) error {
	for _, a := range s.seed.Accounts {
		body := map[string]any{
			"kind": "StorageV2", "sku": map[string]any{"name": "Standard_LRS"}, "properties": map[string]any{"allowBlobPublicAccess": a.Public},
		}
		id := s.resource(azure.TypeStorageAccount, a.Name)
		if err := s.ensure(ctx, id, body, nil); err != nil {
			return err
		}
		s.out.Accounts[a.Name] = "https://" + a.Name + "." + azure.SuffixBlob
		if err := s.assign(ctx, s.out.Operator.PrincipalID, azure.RoleStorageBlobDataOwner, id); err != nil {
			return err
		}
	}
	return nil
}

func (s *seeder) roles(ctx context.Context) error {
	for _, r := range s.seed.Roles {
		p, ok := s.out.Identities[r.To]
		if !ok {
			p = s.out.Applications[r.To]
		}
		scope := r.On
		switch {
		case scope == "":
			scope = s.out.ResourceGroupID
		case !strings.HasPrefix(scope, "/"):
			scope = s.out.ResourceGroupID + "/" + scope
		}
		if err := s.assign(ctx, p.PrincipalID, r.Role, scope); err != nil {
			return err
		}
	}
	return nil
}

// assign makes a role assignment whose name follows from its content, so
// that making it again changes nothing.
func (s *seeder) assign(ctx context.Context, principalID, role, scope string) error {
	name := derived(principalID, strings.ToLower(role+"|"+scope))
	body := map[string]any{"properties": map[string]any{
		"roleDefinitionId": "/subscriptions/" + s.out.SubscriptionID + "/providers/Microsoft.Authorization/roleDefinitions/" + role,
		"principalId":      principalID, "principalType": "ServicePrincipal",
	}}
	err := s.arm(ctx, http.MethodPut, scope+"/providers/"+azure.TypeRoleAssignment+"/"+name, body, nil)
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusConflict {
		return nil // somebody gave it under another name
	}
	return err
}

func (s *seeder) secrets(ctx context.Context) error {
	for _, v := range s.seed.Vaults {
		for _, name := range slices.Sorted(maps.Keys(v.Secrets)) {
			at := s.out.Vaults[v.Name] + "/secrets/" + name + "?api-version=7.4"
			err := s.call(ctx, http.MethodGet, at, azure.ResourceVault, nil, nil)
			var refused *refusal
			if errors.As(err, &refused) && refused.status == http.StatusNotFound {
				err = s.call(ctx, http.MethodPut, at, azure.ResourceVault, map[string]any{"value": v.Secrets[name]}, nil)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *seeder) resource(resourceType, name string) string {
	return s.out.ResourceGroupID + "/providers/" + resourceType + "/" + name
}

// derived is a GUID that follows from its arguments.
func derived(parts ...string) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(strings.ToLower(strings.Join(parts, "|")))).String()
}
