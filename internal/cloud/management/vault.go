package management

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Vault names: 3 to 24 letters, digits and single dashes, a letter first, no dash last.
var validVault = regexp.MustCompile(`^[a-zA-Z](-?[a-zA-Z0-9])+$`)

func validVaultName(s string) bool { return len(s) >= 3 && len(s) <= 24 && validVault.MatchString(s) }

// VaultProperties are the settings of a vault that have an effect here; the others are kept as they came.
type VaultProperties struct {
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
	VaultProperties
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

// FindVault finds a vault by its name, which is unique in the whole cloud.
func FindVault(tx *state.Tx, name string) (Vault, bool, error) {
	key, found, err := state.Get[string](tx, bucketVaultNames, azure.Fold(name))
	if err != nil || !found {
		return Vault{}, false, err
	}
	r, found, err := state.Get[Resource](tx, bucketResources, key)
	if err != nil || !found {
		return Vault{}, false, err
	}
	id, err := r.id()
	if err != nil {
		return Vault{}, false, err
	}
	v := Vault{ID: id, Name: id.Name(), Location: r.Location, UniqueID: r.UniqueID}
	return v, true, json.Unmarshal(r.Properties, &v.VaultProperties)
}

func (c *call) putVault() (answer, error) {
	name := c.id.Name()
	if !validVaultName(name) {
		return answer{}, badRequestCode("VaultNameNotValid", "The vault name '%s' is invalid. A vault's name must be between 3-24 alphanumeric characters. The name must begin with a letter, end with a letter or digit, and not contain consecutive hyphens.", name)
	}
	r, in, created, err := c.begin()
	if err != nil {
		return answer{}, err
	}
	if owner, taken, err := state.Get[string](c.tx, bucketVaultNames, azure.Fold(name)); err != nil {
		return answer{}, err
	} else if taken && owner != c.id.Key() {
		return answer{}, fault(http.StatusConflict, "VaultAlreadyExists", "The vault name '%s' is already in use. Vault names are globally unique so it is possible that the name is already taken. If you are sure that the vault name was not taken then it is possible that a vault with the same name was recently deleted but not purged after being placed in a recoverable state.", name)
	}
	r.Properties = nil
	if r.Properties, err = merge(nil, in.Properties); err != nil {
		return answer{}, err
	}
	if err := state.Put(c.tx, bucketVaultNames, azure.Fold(name), c.id.Key()); err != nil {
		return answer{}, err
	}
	return c.saveVault(r, created)
}

func (c *call) patchVault() (answer, error) {
	r, err := c.find(c.id)
	if err != nil {
		return answer{}, err
	}
	var in envelope
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	if err := r.setTags(in.Tags); err != nil {
		return answer{}, err
	}
	if r.Properties, err = merge(r.Properties, in.Properties); err != nil {
		return answer{}, err
	}
	return c.saveVault(r, false)
}

func (c *call) saveVault(r Resource, created bool) (answer, error) {
	var p VaultProperties
	if len(r.Properties) == 0 {
		return answer{}, badRequest("The parameter properties is not specified: 'properties.tenantId' and 'properties.sku' are required.")
	}
	if err := json.Unmarshal(r.Properties, &p); err != nil {
		return answer{}, invalidBody(err)
	}
	switch {
	case uuid.Validate(p.TenantID) != nil:
		return answer{}, badRequest("The parameter tenantId has an invalid value '%.100s'.", p.TenantID)
	case azure.Fold(p.TenantID) != c.caller.TenantID:
		return answer{}, badRequest("The tenant ID '%s' of the vault must be the tenant of the subscription, '%s'.", p.TenantID, c.caller.TenantID)
	case !strings.EqualFold(p.SKU.Family, "A") || !strings.EqualFold(p.SKU.Name, "standard") && !strings.EqualFold(p.SKU.Name, "premium"):
		return answer{}, badRequest("The parameter sku has an invalid value: use family 'A' and name 'standard' or 'premium'.")
	case p.SoftDeleteDays != nil && (*p.SoftDeleteDays < 7 || *p.SoftDeleteDays > 90):
		return answer{}, badRequest("The parameter softDeleteRetentionInDays has an invalid value '%d'. It must be between 7 and 90.", *p.SoftDeleteDays)
	case len(p.AccessPolicies) > 1024:
		return answer{}, badRequest("A vault can have at most 1024 access policies.")
	}
	for _, a := range p.AccessPolicies {
		if uuid.Validate(a.ObjectID) != nil {
			return answer{}, badRequest("An access policy has the invalid objectId '%.100s'.", a.ObjectID)
		}
	}
	return c.finish(r, created)
}

func (c *call) renderVault(r Resource) (any, error) {
	p := map[string]any{"accessPolicies": []any{}, "enableSoftDelete": true, "softDeleteRetentionInDays": 90, "enableRbacAuthorization": false, "publicNetworkAccess": "Enabled"}
	if err := json.Unmarshal(r.Properties, &p); err != nil {
		return nil, err
	}
	w := r.wire(azure.TypeVault, p)
	p["vaultUri"] = "https://" + strings.ToLower(w.Name) + "." + azure.SuffixVault + "/"
	p["provisioningState"] = "Succeeded"
	return w, nil
}

// removeVault frees the name at once: soft deletion of whole vaults is not modelled.
func (c *call) removeVault(r Resource) error {
	id, err := r.id()
	if err != nil {
		return err
	}
	if c.VaultDeleted != nil {
		if err := c.VaultDeleted(c.tx, r.UniqueID); err != nil {
			return err
		}
	}
	return state.Delete(c.tx, bucketVaultNames, azure.Fold(id.Name()))
}

func (c *call) checkVaultName() (answer, error) {
	var in struct {
		Name string `json:"name"`
		Type string `json:"type"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	type reply struct {
		Available bool   `json:"nameAvailable"`
		Reason    string `json:"reason,omitempty"`
		Message   string `json:"message,omitempty"`
	}
	if !strings.EqualFold(in.Type, azure.TypeVault) {
		return answer{}, badRequest("The parameter type has an invalid value '%.100s': expected '%s'.", in.Type, azure.TypeVault)
	}
	if !validVaultName(in.Name) {
		return ok(reply{false, "AccountNameInvalid", "A vault's name must be between 3-24 alphanumeric characters. The name must begin with a letter, end with a letter or digit, and not contain consecutive hyphens."}), nil
	}
	_, taken, err := state.Get[string](c.tx, bucketVaultNames, azure.Fold(in.Name))
	if err != nil || !taken {
		return ok(reply{Available: true}), err
	}
	return ok(reply{false, "AlreadyExists", "The vault name '" + in.Name + "' is already in use."}), nil
}
