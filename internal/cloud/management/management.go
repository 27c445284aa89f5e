// Package management is the local cloud's Azure Resource Manager: it puts the resource providers together.
//
//	request -> arm            authenticate, throttle, route, authorise, one transaction, answer
//	             resources      tenants, subscriptions, groups           Microsoft.Resources
//	             identity       managed identities                       Microsoft.ManagedIdentity
//	             authorization  role assignments and definitions         Microsoft.Authorization
//	             compute        machines, their identities, operations   Microsoft.Compute
//	             vaults         key vaults, not what they hold           Microsoft.KeyVault
//	             storage        storage accounts, not what they hold     Microsoft.Storage
//	           roles          who may what; the vaults ask there too
//
// The actions that RBAC knows follow from a type and a method. There is no second way in: Do runs the same steps for
// callers inside the process (the cloud's seed, tests) with a principal that they name, and only CreateSubscription,
// which makes the first role assignment, goes around RBAC.
package management

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/management/authorization"
	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
	"github.com/lanyard-id/lanyard/internal/cloud/management/identity"
	"github.com/lanyard-id/lanyard/internal/cloud/management/resources"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/management/storage"
	"github.com/lanyard-id/lanyard/internal/cloud/management/vaults"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A Server answers for management.azure.com. DB and Verify must be set.
type Server struct {
	DB *state.DB

	// Verify checks a bearer token and returns who it speaks for. The token must be for one of the audiences.
	Verify func(ctx context.Context, bearer string, audiences ...string) (login.Claims, error)

	// VaultDeleted is told, inside the transaction, that a vault (its UniqueID) is gone, so that what it held goes too.
	// nil means nobody wants to know.
	VaultDeleted func(tx *state.Tx, uniqueID string) error
	// StorageDeleted is the same for storage accounts.
	StorageDeleted func(tx *state.Tx, uniqueID string) error

	Identity identity.Config // the zero value is good

	Compute func() compute.Settings // read at each request; nil means the zero value
	Limits  func() bool             // whether callers are throttled, read at each request; nil means they are not

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	once    sync.Once
	arm     *arm.Server
	compute compute.Provider
}

func (s *Server) built() *arm.Server {
	s.once.Do(func() {
		s.compute = compute.New(s.Compute)
		s.arm = &arm.Server{
			DB: s.DB, Types: s.types(), Verify: s.Verify, Public: public, Limits: s.Limits, Now: s.Now, Logger: s.Logger,
			Before: func(now time.Time) error { return s.compute.Settle(s.DB, now) },
		}
	})
	return s.arm
}

func (s *Server) types() arm.Table {
	var all arm.Table
	for _, provider := range [][]*arm.Type{
		resources.Types(), identity.Types(s.Identity), authorization.Types(), s.compute.Types(), vaults.Types(s.VaultDeleted), storage.Types(s.StorageDeleted),
	} {
		all = append(all, provider...)
	}
	return all
}

// public is what anybody may read.
func public(method, path string, query url.Values) (arm.Answer, bool, error) {
	if !strings.EqualFold(path, "/metadata/endpoints") {
		return arm.Answer{}, false, nil
	}
	a, err := resources.Endpoints(method, query)
	return a, true, err
}

// Handler returns the host's handler. It must see the path as it was sent: a ServeMux in front would clean it.
func (s *Server) Handler() http.Handler { return s.built() }

// Do performs one request for a caller inside the process: see arm.Server.Do.
func (s *Server) Do(ctx context.Context, caller login.Claims, method, path string, in, out any) error {
	return s.built().Do(ctx, caller, method, path, in, out)
}

// Settle makes the changes of all operations that are due. Resource Manager does so before each request; whoever reads
// its state otherwise calls it first.
func (s *Server) Settle() error {
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	s.built()
	return s.compute.Settle(s.DB, now())
}

// CreateSubscription makes a subscription and gives its owner the role Owner on it. It is the only way to a first role
// assignment, has no HTTP form, and does nothing if the subscription exists.
func (s *Server) CreateSubscription(_ context.Context, sub arm.Subscription, ownerPrincipalID string) error {
	sub.ID = azure.Fold(sub.ID)
	if err := sub.Validate(); err != nil {
		return err
	}
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	return s.DB.Update(func(tx *state.Tx) error {
		_, exists, err := arm.FindSubscription(tx, sub.ID)
		if err != nil || exists {
			return err
		}
		tenant, ok, err := directory.TenantByName(tx, sub.TenantID)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("creating subscription %s: tenant %q does not exist", sub.ID, sub.TenantID)
		}
		sub.TenantID = tenant.ID
		owner, ok, err := directory.ServicePrincipalByID(tx, ownerPrincipalID)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("creating subscription %s: the owner %q is not a service principal", sub.ID, ownerPrincipalID)
		}
		if err := arm.PutSubscription(tx, sub); err != nil {
			return err
		}
		at := now().UTC()
		return roles.PutAssignment(tx, roles.Assignment{Name: arm.NewGUID(), Scope: azure.Subscription(sub.ID).String(), RoleID: azure.RoleOwner,
			PrincipalID: owner.ID, PrincipalType: "ServicePrincipal", Created: at, Updated: at, CreatedBy: owner.ID, UpdatedBy: owner.ID})
	})
}
