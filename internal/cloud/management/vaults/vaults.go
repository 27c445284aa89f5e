// Package vaults is the resource provider Microsoft.KeyVault: the vaults as Resource Manager knows them. What they hold
// is internal/cloud/vault.
package vaults

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// bucketVaultNames is this package's bucket of the state: by folded name -> key of the vault's id.
const bucketVaultNames = "vaultNames"

// Vault names: 3 to 24 letters, digits and single dashes, a letter first, no dash last.
var nameForm = regexp.MustCompile(`^[a-zA-Z](-?[a-zA-Z0-9])+$`)

func validName(s string) bool { return len(s) >= 3 && len(s) <= 24 && nameForm.MatchString(s) }

// Properties are the settings of a vault that have an effect here; the others are kept as they came.
type Properties struct {
	TenantID                string         `json:"tenantId"`
	EnableRBACAuthorization *bool          `json:"enableRbacAuthorization"`
	AccessPolicies          []AccessPolicy `json:"accessPolicies"`
	SoftDeleteDays          *int           `json:"softDeleteRetentionInDays"`
	EnablePurgeProtection   *bool          `json:"enablePurgeProtection"`
	SKU                     struct {
		Family string `json:"family"`
		Name   string `json:"name"`
	} `json:"sku"`
}

// An AccessPolicy gives a principal permissions in a vault that does not use RBAC.
type AccessPolicy struct {
	TenantID    string `json:"tenantId"`
	ObjectID    string `json:"objectId"`
	Permissions struct {
		Secrets []string `json:"secrets"`
	} `json:"permissions"`
}

// A Vault is what the data plane must know of a vault.
type Vault struct {
	ID       azure.ResourceID
	Name     string
	Location string
	UniqueID string // of this incarnation
	Properties
}

// RBAC reports whether role assignments decide who reads the vault, rather than access policies.
func (v Vault) RBAC() bool { return v.EnableRBACAuthorization != nil && *v.EnableRBACAuthorization }

// RetentionDays is how long a deleted secret can be recovered.
func (v Vault) RetentionDays() int {
	if v.SoftDeleteDays == nil {
		return 90
	}
	return *v.SoftDeleteDays
}

// PurgeProtected reports whether deleted secrets stay until their time is over.
func (v Vault) PurgeProtected() bool {
	return v.EnablePurgeProtection != nil && *v.EnablePurgeProtection
}

// Find finds a vault by its name, which is unique in the whole cloud.
func Find(tx *state.Tx, name string) (Vault, bool, error) {
	key, found, err := state.Get[string](tx, bucketVaultNames, azure.Fold(name))
	if err != nil || !found {
		return Vault{}, false, err
	}
	id, err := azure.ParseResourceID(key)
	if err != nil {
		return Vault{}, false, err
	}
	r, found, err := arm.FindResource(tx, id)
	if err != nil || !found {
		return Vault{}, false, err
	}
	if id, err = r.ResourceID(); err != nil {
		return Vault{}, false, err
	}
	v := Vault{ID: id, Name: id.Name(), Location: r.Location, UniqueID: r.UniqueID}
	return v, true, json.Unmarshal(r.Properties, &v.Properties)
}

const typeNames = "Microsoft.KeyVault/checkNameAvailability"

// Types are the provider's resource types. deleted is told, inside the transaction, that a vault (its UniqueID) is gone,
// so that what it held goes too; nil means nobody wants to know.
func Types(deleted func(tx *state.Tx, uniqueID string) error) []*arm.Type {
	versions := []string{"2023-07-01", "2022-07-01", "2019-09-01"}
	return []*arm.Type{
		arm.Tracked(arm.Type{Name: azure.TypeVault, Versions: versions, Render: render, Put: put, Patch: patch,
			Remove: func(tx *state.Tx, r arm.Resource) error { return remove(tx, r, deleted) }}),
		{Name: typeNames, Place: arm.InSubscription, Versions: versions, Post: map[string]arm.Handler{"": checkName}},
	}
}

// Names calls f with each vault name and the key of the vault that it leads to.
func Names(tx *state.Tx, f func(name, key string)) error {
	names, err := state.Keys(tx, bucketVaultNames, "")
	if err != nil {
		return err
	}
	for _, name := range names {
		key, _, err := state.Get[string](tx, bucketVaultNames, name)
		if err != nil {
			return err
		}
		f(name, key)
	}
	return nil
}

func put(c *arm.Call) (arm.Answer, error) {
	name := c.ID.Name()
	if !validName(name) {
		return arm.Answer{}, arm.BadRequestCode("VaultNameNotValid", "The vault name '%s' is invalid. A vault's name must be between 3-24 alphanumeric characters. The name must begin with a letter, end with a letter or digit, and not contain consecutive hyphens.", name)
	}
	r, in, created, err := c.Begin()
	if err != nil {
		return arm.Answer{}, err
	}
	if owner, taken, err := state.Get[string](c.Tx, bucketVaultNames, azure.Fold(name)); err != nil {
		return arm.Answer{}, err
	} else if taken && owner != c.ID.Key() {
		return arm.Answer{}, arm.Fault(http.StatusConflict, "VaultAlreadyExists", "The vault name '%s' is already in use. Vault names are globally unique so it is possible that the name is already taken. If you are sure that the vault name was not taken then it is possible that a vault with the same name was recently deleted but not purged after being placed in a recoverable state.", name)
	}
	r.Properties = nil
	if r.Properties, err = arm.Merge(nil, in.Properties); err != nil {
		return arm.Answer{}, err
	}
	if err := state.Put(c.Tx, bucketVaultNames, azure.Fold(name), c.ID.Key()); err != nil {
		return arm.Answer{}, err
	}
	return save(c, r, created)
}

func patch(c *arm.Call) (arm.Answer, error) {
	r, err := c.Find(c.ID)
	if err != nil {
		return arm.Answer{}, err
	}
	var in arm.Envelope
	if err := c.Decode(&in); err != nil {
		return arm.Answer{}, err
	}
	if err := r.SetTags(in.Tags); err != nil {
		return arm.Answer{}, err
	}
	if r.Properties, err = arm.Merge(r.Properties, in.Properties); err != nil {
		return arm.Answer{}, err
	}
	return save(c, r, false)
}

func save(c *arm.Call, r arm.Resource, created bool) (arm.Answer, error) {
	var p Properties
	if len(r.Properties) == 0 {
		return arm.Answer{}, arm.BadRequest("The parameter properties is not specified: 'properties.tenantId' and 'properties.sku' are required.")
	}
	if err := json.Unmarshal(r.Properties, &p); err != nil {
		return arm.Answer{}, arm.InvalidBody(err)
	}
	switch {
	case uuid.Validate(p.TenantID) != nil:
		return arm.Answer{}, arm.BadRequest("The parameter tenantId has an invalid value '%.100s'.", p.TenantID)
	case azure.Fold(p.TenantID) != c.Caller.TenantID:
		return arm.Answer{}, arm.BadRequest("The tenant ID '%s' of the vault must be the tenant of the subscription, '%s'.", p.TenantID, c.Caller.TenantID)
	case !strings.EqualFold(p.SKU.Family, "A") || !strings.EqualFold(p.SKU.Name, "standard") && !strings.EqualFold(p.SKU.Name, "premium"):
		return arm.Answer{}, arm.BadRequest("The parameter sku has an invalid value: use family 'A' and name 'standard' or 'premium'.")
	case p.SoftDeleteDays != nil && (*p.SoftDeleteDays < 7 || *p.SoftDeleteDays > 90):
		return arm.Answer{}, arm.BadRequest("The parameter softDeleteRetentionInDays has an invalid value '%d'. It must be between 7 and 90.", *p.SoftDeleteDays)
	case len(p.AccessPolicies) > 1024:
		return arm.Answer{}, arm.BadRequest("A vault can have at most 1024 access policies.")
	}
	for _, a := range p.AccessPolicies {
		if uuid.Validate(a.ObjectID) != nil {
			return arm.Answer{}, arm.BadRequest("An access policy has the invalid objectId '%.100s'.", a.ObjectID)
		}
	}
	return c.Finish(r, created)
}

func render(c *arm.Call, r arm.Resource) (any, error) {
	p := map[string]any{"accessPolicies": []any{}, "enableSoftDelete": true, "softDeleteRetentionInDays": 90, "enableRbacAuthorization": false, "publicNetworkAccess": "Enabled"}
	if err := json.Unmarshal(r.Properties, &p); err != nil {
		return nil, err
	}
	w := r.Wire(azure.TypeVault, p)
	p["vaultUri"] = "https://" + strings.ToLower(w.Name) + "." + azure.SuffixVault + "/"
	p["provisioningState"] = "Succeeded"
	return w, nil
}

// remove frees the name at once: soft deletion of whole vaults is not modelled.
func remove(tx *state.Tx, r arm.Resource, deleted func(tx *state.Tx, uniqueID string) error) error {
	if deleted != nil {
		if err := deleted(tx, r.UniqueID); err != nil {
			return err
		}
	}
	return state.Delete(tx, bucketVaultNames, azure.Fold(r.Name()))
}

func checkName(c *arm.Call) (arm.Answer, error) {
	var in struct {
		Name string `json:"name"`
		Type string `json:"type"`
	}
	if err := c.Decode(&in); err != nil {
		return arm.Answer{}, err
	}
	type reply struct {
		Available bool   `json:"nameAvailable"`
		Reason    string `json:"reason,omitempty"`
		Message   string `json:"message,omitempty"`
	}
	if !strings.EqualFold(in.Type, azure.TypeVault) {
		return arm.Answer{}, arm.BadRequest("The parameter type has an invalid value '%.100s': expected '%s'.", in.Type, azure.TypeVault)
	}
	if !validName(in.Name) {
		return arm.OK(reply{false, "AccountNameInvalid", "A vault's name must be between 3-24 alphanumeric characters. The name must begin with a letter, end with a letter or digit, and not contain consecutive hyphens."}), nil
	}
	_, taken, err := state.Get[string](c.Tx, bucketVaultNames, azure.Fold(in.Name))
	if err != nil || !taken {
		return arm.OK(reply{Available: true}), err
	}
	return arm.OK(reply{false, "AlreadyExists", "The vault name '" + in.Name + "' is already in use."}), nil
}
