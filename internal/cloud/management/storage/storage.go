// Package storage is the resource provider Microsoft.Storage: storage accounts as Resource Manager knows them. What they
// hold, blobs only, is internal/cloud/blob. Accounts have no keys: callers prove themselves with tokens, or read what a
// container shows to everybody.
//
// Source: https://learn.microsoft.com/rest/api/storagerp/storage-accounts
package storage

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/management/arm"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// bucketNames is this package's bucket of the state: by name -> key of the account's id.
const bucketNames = "storageNames"

const typeNames = "Microsoft.Storage/checkNameAvailability"

const nameRule = "Storage account name must be between 3 and 24 characters in length and use numbers and lower-case letters only."

var validName = regexp.MustCompile(`^[a-z0-9]{3,24}$`)

// An Account is what the data plane must know of a storage account.
type Account struct {
	ID       azure.ResourceID
	Name     string
	TenantID string // of its subscription
	UniqueID string // of this incarnation
	// Public says that containers can be opened to everybody.
	Public bool
}

type properties struct {
	AllowBlobPublicAccess bool `json:"allowBlobPublicAccess"`
}

// Find finds an account by its name, which is unique in the whole cloud.
func Find(tx *state.Tx, name string) (Account, bool, error) {
	var none Account
	key, found, err := state.Get[string](tx, bucketNames, azure.Fold(name))
	if err != nil || !found {
		return none, false, err
	}
	id, err := azure.ParseResourceID(key)
	if err != nil {
		return none, false, err
	}
	r, found, err := arm.FindResource(tx, id)
	if err != nil || !found {
		return none, false, err
	}
	if id, err = r.ResourceID(); err != nil {
		return none, false, err
	}
	sub, _, err := arm.FindSubscription(tx, id.SubscriptionID)
	if err != nil {
		return none, false, err
	}
	var p properties
	if len(r.Properties) > 0 {
		if err := json.Unmarshal(r.Properties, &p); err != nil {
			return none, false, err
		}
	}
	return Account{ID: id, Name: id.Name(), TenantID: sub.TenantID, UniqueID: r.UniqueID, Public: p.AllowBlobPublicAccess}, true, nil
}

// Names lists the names of all accounts.
func Names(tx *state.Tx) ([]string, error) { return state.Keys(tx, bucketNames, "") }

// Types are the provider's resource types. deleted is told, inside the transaction, that an account (its UniqueID) is
// gone, so that what it held goes too; nil means nobody wants to know.
func Types(deleted func(tx *state.Tx, uniqueID string) error) []*arm.Type {
	versions := []string{"2024-01-01", "2023-01-01", "2022-09-01", "2021-09-01"}
	return []*arm.Type{
		arm.Tracked(arm.Type{
			Name: azure.TypeStorageAccount, Versions: versions, Render: render, Put: put, Patch: patch,
			Post: map[string]arm.Handler{"listkeys": noKeys, "regeneratekey": noKeys},
			Remove: func(tx *state.Tx, r arm.Resource) error {
				if deleted != nil {
					if err := deleted(tx, r.UniqueID); err != nil {
						return err
					}
				}
				return state.Delete(tx, bucketNames, azure.Fold(r.Name()))
			},
		}),
		{Name: typeNames, Place: arm.InSubscription, Versions: versions, Post: map[string]arm.Handler{"": checkName}},
	}
}

func put(c *arm.Call) (arm.Answer, error) {
	name := c.ID.Name()
	if !validName.MatchString(name) {
		return arm.Answer{}, arm.BadRequestCode("AccountNameInvalid", "%s is not a valid storage account name. %s", name, nameRule)
	}
	r, in, created, err := c.Begin()
	if err != nil {
		return arm.Answer{}, err
	}
	if owner, taken, err := state.Get[string](c.Tx, bucketNames, name); err != nil {
		return arm.Answer{}, err
	} else if taken && owner != c.ID.Key() {
		return arm.Answer{}, arm.Fault(http.StatusConflict, "StorageAccountAlreadyTaken", "The storage account named %s is already taken.", name)
	}
	if created && len(in.SKU) == 0 {
		return arm.Answer{}, arm.BadRequestCode("InvalidRequestPropertyValue", "The value for the property 'sku' is missing: use {\"name\":\"Standard_LRS\"}.")
	}
	if len(in.SKU) > 0 {
		r.SKU = in.SKU
	}
	if r.Properties, err = arm.Merge(r.Properties, in.Properties); err != nil {
		return arm.Answer{}, err
	}
	if err := state.Put(c.Tx, bucketNames, name, c.ID.Key()); err != nil {
		return arm.Answer{}, err
	}
	a, err := save(c, r, created)
	a.Status = http.StatusOK // its clients know no 201
	return a, err
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
	var sku struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(r.SKU, &sku); err != nil || sku.Name == "" {
		return arm.Answer{}, arm.BadRequestCode("InvalidRequestPropertyValue", "The value for the property 'sku' is invalid: use {\"name\":\"Standard_LRS\"}.")
	}
	if len(r.Properties) > 0 {
		var p properties
		if err := json.Unmarshal(r.Properties, &p); err != nil {
			return arm.Answer{}, arm.InvalidBody(err)
		}
	}
	return c.Finish(r, created)
}

func render(_ *arm.Call, r arm.Resource) (any, error) {
	p := map[string]any{"allowBlobPublicAccess": false, "minimumTlsVersion": "TLS1_2", "publicNetworkAccess": "Enabled"}
	if len(r.Properties) > 0 {
		if err := json.Unmarshal(r.Properties, &p); err != nil {
			return nil, err
		}
	}
	p["allowSharedKeyAccess"], p["supportsHttpsTrafficOnly"], p["accessTier"] = false, true, "Hot"
	p["creationTime"], p["provisioningState"] = r.Created, "Succeeded"
	p["primaryLocation"], p["statusOfPrimary"] = r.Location, "available"
	p["primaryEndpoints"] = map[string]string{"blob": "https://" + r.Name() + "." + azure.SuffixBlob + "/"}
	return struct {
		arm.Wire
		Kind string `json:"kind"`
	}{r.Wire(azure.TypeStorageAccount, p), "StorageV2"}, nil
}

func noKeys(c *arm.Call) (arm.Answer, error) {
	if _, err := c.Find(c.ID); err != nil {
		return arm.Answer{}, err
	}
	return arm.Answer{}, arm.Fault(http.StatusForbidden, "KeyBasedAuthenticationNotPermitted", "Storage accounts of this cloud have no keys. Use Microsoft Entra ID: a token for %s and a role such as Storage Blob Data Contributor.", azure.ResourceStorage)
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
	if !strings.EqualFold(in.Type, azure.TypeStorageAccount) {
		return arm.Answer{}, arm.BadRequest("The parameter type has an invalid value '%.100s': expected '%s'.", in.Type, azure.TypeStorageAccount)
	}
	if !validName.MatchString(in.Name) {
		return arm.OK(reply{false, "AccountNameInvalid", in.Name + " is not a valid storage account name. " + nameRule}), nil
	}
	_, taken, err := state.Get[string](c.Tx, bucketNames, in.Name)
	if err != nil || !taken {
		return arm.OK(reply{Available: true}), err
	}
	return arm.OK(reply{false, "AlreadyExists", "The storage account named " + in.Name + " is already taken."}), nil
}
