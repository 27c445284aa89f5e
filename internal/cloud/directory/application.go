package directory

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// RegisterApplication registers an application in the home tenant without a
// service principal. CreateApplication makes both.
func RegisterApplication(tx *state.Tx, displayName string) (Application, error) {
	if err := validDisplayName(displayName); err != nil {
		return Application{}, err
	}
	home, err := HomeTenant(tx)
	if err != nil {
		return Application{}, err
	}
	app := Application{ObjectID: uuid.NewString(), AppID: uuid.NewString(), TenantID: home.ID, DisplayName: displayName, TokenVersion: 1}
	if err := state.Put(tx, indexAppID, app.AppID, app.ObjectID); err != nil {
		return Application{}, err
	}
	return app, putApplication(tx, app)
}

// CreateServicePrincipal makes the service principal of an application. The
// error is ErrNotFound for an unknown client id, ErrExists if it has one.
func CreateServicePrincipal(tx *state.Tx, appID string) (ServicePrincipal, error) {
	var none ServicePrincipal
	app, ok, err := ApplicationByAppID(tx, appID)
	if err != nil {
		return none, err
	}
	if !ok {
		return none, fmt.Errorf("application with client id %q: %w", appID, ErrNotFound)
	}
	old, ok, err := ServicePrincipalByAppID(tx, app.AppID)
	if err != nil {
		return none, err
	}
	if ok {
		return none, fmt.Errorf("service principal %s of application %s: %w", old.ID, app.AppID, ErrExists)
	}
	sp := ServicePrincipal{ID: uuid.NewString(), AppID: app.AppID, TenantID: app.TenantID, DisplayName: app.DisplayName, Type: TypeApplication}
	return sp, putPrincipal(tx, sp)
}

// UpdateApplication changes what has no function of its own: the display
// name, the sign-in audience, owners and settings. It keeps the rest as it
// was, whatever change does. The service principal follows the display name.
func UpdateApplication(tx *state.Tx, objectID string, change func(*Application)) (Application, error) {
	app, err := application(tx, objectID)
	if err != nil {
		return Application{}, err
	}
	changed := app
	changed.Owners = slices.Clone(app.Owners)
	change(&changed)
	app.DisplayName, app.SignInAudience, app.Owners, app.Settings = changed.DisplayName, changed.SignInAudience, changed.Owners, changed.Settings
	app.Created = changed.Created
	if err := validDisplayName(app.DisplayName); err != nil {
		return Application{}, err
	}
	sp, ok, err := ServicePrincipalByAppID(tx, app.AppID)
	if err != nil {
		return Application{}, err
	}
	if ok && sp.DisplayName != app.DisplayName {
		sp.DisplayName = app.DisplayName
		if err := putPrincipal(tx, sp); err != nil {
			return Application{}, err
		}
	}
	return app, putApplication(tx, app)
}

// DeleteApplication removes an application with its service principal and
// its federated credentials. It reports false if there was none.
func DeleteApplication(tx *state.Tx, objectID string) (bool, error) {
	app, ok, err := ApplicationByID(tx, objectID)
	if err != nil || !ok {
		return false, err
	}
	sp, ok, err := ServicePrincipalByAppID(tx, app.AppID)
	if err != nil {
		return false, err
	}
	if ok {
		if _, err := DeleteServicePrincipal(tx, sp.ID); err != nil {
			return false, err
		}
	}
	if err := deleteFederated(tx, app.ObjectID); err != nil {
		return false, err
	}
	for _, u := range app.IdentifierURIs {
		if err := state.Delete(tx, indexURI, fold(u)); err != nil {
			return false, err
		}
	}
	if err := state.Delete(tx, indexAppID, app.AppID); err != nil {
		return false, err
	}
	return true, state.Delete(tx, bucketApps, app.ObjectID)
}

// SetAccess replaces what a service principal may do in the directory:
// permissions of Microsoft Graph (Application.ReadWrite.All, ...) and
// directory roles by their template ids.
func SetAccess(tx *state.Tx, principalID string, permissions, roles []string) error {
	sp, ok, err := ServicePrincipalByID(tx, principalID)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("service principal %q: %w", principalID, ErrNotFound)
	}
	sp.Permissions, sp.DirectoryRoles = slices.Clone(permissions), slices.Clone(roles)
	return putPrincipal(tx, sp)
}

// UpdateServicePrincipal changes the owners of a service principal; it keeps
// the rest as it was, whatever change does.
func UpdateServicePrincipal(tx *state.Tx, id string, change func(*ServicePrincipal)) error {
	sp, ok, err := ServicePrincipalByID(tx, id)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("service principal %q: %w", id, ErrNotFound)
	}
	changed := sp
	changed.Owners = slices.Clone(sp.Owners)
	change(&changed)
	sp.Owners = changed.Owners
	return putPrincipal(tx, sp)
}

// Settings are properties of an application that are kept and shown and have
// no effect in this cloud, by their name in Graph.
type Settings map[string]json.RawMessage

func validDisplayName(name string) error {
	if name == "" || len(name) > maxNameLength {
		return fmt.Errorf("application display name must have 1 to %d characters: %w", maxNameLength, ErrInvalid)
	}
	return nil
}
