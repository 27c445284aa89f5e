package graph

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

const applications = "applications"

// settable are the properties of an application that are kept as they come, with what they are until then.
func settable() map[string]any {
	none := []any{}
	return map[string]any{
		"addIns": none, "api": object{"acceptMappedClaims": nil, "knownClientApplications": none, "oauth2PermissionScopes": none, "preAuthorizedApplications": none, "requestedAccessTokenVersion": nil},
		"appRoles": none, "description": nil, "groupMembershipClaims": nil, "info": object{}, "isDeviceOnlyAuthSupported": nil,
		"isFallbackPublicClient": nil, "notes": nil, "optionalClaims": nil, "parentalControlSettings": object{"countriesBlockedForMinors": none, "legalAgeGroupRule": "Allow"},
		"publicClient": object{"redirectUris": none}, "requiredResourceAccess": none, "samlMetadataUrl": nil, "serviceManagementReference": nil,
		"spa": object{"redirectUris": none}, "tags": []string{}, "tokenEncryptionKeyId": nil,
		"web": object{"homePageUrl": nil, "implicitGrantSettings": object{"enableAccessTokenIssuance": false, "enableIdTokenIssuance": false}, "logoutUrl": nil, "redirectUriSettings": none, "redirectUris": none},
	}
}

// renderApplication makes the wire form.
func renderApplication(tenant directory.Tenant, a directory.Application) (object, error) {
	o := object{
		"id": a.ObjectID, "deletedDateTime": nil, "appId": a.AppID, "applicationTemplateId": nil, "createdDateTime": stamped(a.Created),
		"displayName": a.DisplayName, "disabledByMicrosoftStatus": nil, "identifierUris": orEmpty(a.IdentifierURIs), "publisherDomain": tenant.Domain,
		"signInAudience": or(a.SignInAudience, "AzureADMyOrg"), "uniqueName": nil,
	}
	for name, v := range settable() {
		o[name] = v
	}
	for name, raw := range a.Settings {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, err
		}
		o[name] = v
	}
	passwords, keys := []object{}, []object{}
	for _, p := range a.Passwords {
		passwords = append(passwords, renderPassword(p, nil))
	}
	for _, k := range a.Keys {
		keys = append(keys, object{
			"customKeyIdentifier": nil, "displayName": k.DisplayName, "endDateTime": stamped(k.NotAfter), "key": nil, "keyId": k.KeyID,
			"startDateTime": stamped(k.NotBefore), "type": "AsymmetricX509Cert", "usage": "Verify",
		})
	}
	o["passwordCredentials"], o["keyCredentials"] = passwords, keys
	return o, nil
}

func renderPassword(p directory.PasswordCredential, secret any) object {
	return object{
		"customKeyIdentifier": nil, "displayName": p.DisplayName, "endDateTime": stamped(p.NotAfter), "hint": p.Hint,
		"keyId": p.KeyID, "secretText": secret, "startDateTime": stamped(p.NotBefore),
	}
}

// stamped writes an instant; the zero one is null.
func stamped(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(time.RFC3339)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// findApplication resolves an object id, or appId='x'.
func (c *call) findApplication() ([]string, error) {
	find, key := directory.ApplicationByID, c.key
	if appID, ok := alternate(c.key, "appId"); ok {
		find, key = directory.ApplicationByAppID, appID
	}
	app, ok, err := find(c.tx, key)
	if err != nil {
		return nil, err
	}
	if !ok || app.TenantID != c.caller.TenantID {
		return nil, notFound(key)
	}
	c.id = app.ObjectID
	return app.Owners, nil
}

// application renders the resolved application.
func (c *call) application() (object, error) {
	app, _, err := directory.ApplicationByID(c.tx, c.id)
	if err != nil {
		return nil, err
	}
	tenant, err := directory.HomeTenant(c.tx)
	if err != nil {
		return nil, err
	}
	return renderApplication(tenant, app)
}

func (c *call) listApplications() (answer, error) {
	apps, err := directory.Applications(c.tx)
	if err != nil {
		return answer{}, err
	}
	tenant, err := directory.HomeTenant(c.tx)
	if err != nil {
		return answer{}, err
	}
	var all []object
	for _, a := range apps {
		if a.TenantID != c.caller.TenantID {
			continue
		}
		o, err := renderApplication(tenant, a)
		if err != nil {
			return answer{}, err
		}
		all = append(all, o)
	}
	return c.list(applications, all)
}

func (c *call) getApplication() (answer, error) {
	o, err := c.application()
	if err != nil {
		return answer{}, err
	}
	return c.one(http.StatusOK, applications, o)
}

// applicationInput are the members of a POST or PATCH that have an effect, and the others as they came.
type applicationInput struct {
	displayName, audience *string
	uris                  *[]string
	keys                  *[]keyInput
	owners                []string // URLs of directory objects; a POST only
	settings              directory.Settings
}

type keyInput struct {
	KeyID       string `json:"keyId"`
	DisplayName string `json:"displayName"`
	Key         []byte `json:"key"`
	Type        string `json:"type"`
	Usage       string `json:"usage"`
}

func (c *call) readApplication() (in applicationInput, err error) {
	members, err := c.members()
	if err != nil {
		return in, err
	}
	known := settable()
	in.settings = directory.Settings{}
	for name, raw := range members {
		switch name {
		case "displayName":
			err = member(name, raw, &in.displayName)
		case "signInAudience":
			err = member(name, raw, &in.audience)
		case "identifierUris":
			err = member(name, raw, &in.uris)
		case "keyCredentials":
			err = member(name, raw, &in.keys)
		case "owners@odata.bind":
			err = member(name, raw, &in.owners)
		case "passwordCredentials":
			var none []json.RawMessage
			if err = member(name, raw, &none); err == nil && len(none) > 0 {
				err = badRequest("Property passwordCredentials cannot be set: use the action addPassword.")
			}
		default:
			if _, ok := known[name]; !ok {
				err = badRequest("Invalid property '%.100s'.", name)
			}
			in.settings[name] = raw
		}
		if err != nil {
			return in, err
		}
	}
	if a := in.audience; a != nil && *a != "AzureADMyOrg" && *a != "AzureADMultipleOrgs" && *a != "AzureADandPersonalMicrosoftAccount" && *a != "PersonalMicrosoftAccount" {
		return in, badRequest("Invalid value specified for property 'signInAudience' of resource 'Application'.")
	}
	return in, nil
}

// members reads the body as a JSON object.
func (c *call) members() (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(c.body, &m); err != nil || m == nil {
		e := badRequest("Unable to read JSON request payload. Please ensure Content-Type header is set and payload is of valid JSON format.")
		e.Err = err
		return nil, e
	}
	for name := range m {
		if strings.HasPrefix(name, "@odata.") {
			delete(m, name)
		}
	}
	return m, nil
}

func member(name string, raw json.RawMessage, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		e := badRequest("Invalid value specified for property '%s'.", name)
		e.Err = err
		return e
	}
	return nil
}

func (c *call) createApplication() (answer, error) {
	in, err := c.readApplication()
	if err != nil {
		return answer{}, err
	}
	if in.displayName == nil || *in.displayName == "" {
		return answer{}, badRequest("A value is required for property 'displayName' of resource 'Application'.")
	}
	owners, err := c.firstOwners(in.owners)
	if err != nil {
		return answer{}, err
	}
	app, err := directory.RegisterApplication(c.tx, *in.displayName)
	if err != nil {
		return answer{}, asFault(err)
	}
	c.id = app.ObjectID
	if _, err := directory.UpdateApplication(c.tx, c.id, func(a *directory.Application) { a.Created, a.Owners = c.now, owners }); err != nil {
		return answer{}, asFault(err)
	}
	if err := c.applyApplication(in); err != nil {
		return answer{}, err
	}
	o, err := c.application()
	if err != nil {
		return answer{}, err
	}
	return c.one(http.StatusCreated, applications, o)
}

func (c *call) patchApplication() (answer, error) {
	in, err := c.readApplication()
	if err != nil {
		return answer{}, err
	}
	if in.owners != nil {
		return answer{}, badRequest("Property owners cannot be changed like this: use owners/$ref.")
	}
	return answer{status: http.StatusNoContent}, c.applyApplication(in)
}

func (c *call) applyApplication(in applicationInput) error {
	_, err := directory.UpdateApplication(c.tx, c.id, func(a *directory.Application) {
		if in.displayName != nil {
			a.DisplayName = *in.displayName
		}
		if in.audience != nil {
			a.SignInAudience = *in.audience
		}
		settings := directory.Settings{}
		for _, from := range []directory.Settings{a.Settings, in.settings} {
			for name, raw := range from {
				settings[name] = raw
			}
		}
		a.Settings = settings
	})
	if err == nil && in.uris != nil {
		err = directory.SetIdentifierURIs(c.tx, c.id, *in.uris...)
	}
	if err == nil && in.settings["api"] != nil {
		err = c.applyTokenVersion(in.settings["api"])
	}
	if err == nil && in.keys != nil {
		err = c.replaceKeys(*in.keys)
	}
	return asFault(err)
}

// applyTokenVersion makes api.requestedAccessTokenVersion count.
func (c *call) applyTokenVersion(raw json.RawMessage) error {
	var api struct {
		Version *int `json:"requestedAccessTokenVersion"`
	}
	if err := member("api", raw, &api); err != nil {
		return err
	}
	if api.Version == nil {
		return directory.SetTokenVersion(c.tx, c.id, 1)
	}
	return directory.SetTokenVersion(c.tx, c.id, *api.Version)
}

// replaceKeys makes the certificates those of the list: one with a key is new, one with only an id stays.
func (c *call) replaceKeys(keys []keyInput) error {
	app, _, err := directory.ApplicationByID(c.tx, c.id)
	if err != nil {
		return err
	}
	for _, have := range app.Keys {
		if slices.ContainsFunc(keys, func(k keyInput) bool { return k.Key == nil && strings.EqualFold(k.KeyID, have.KeyID) }) {
			continue
		}
		if err := directory.RemoveCertificate(c.tx, c.id, have.KeyID); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if k.Key == nil {
			continue
		}
		if k.Type != "AsymmetricX509Cert" || k.Usage != "Verify" {
			return badRequest("Key credential type '%.50s' with usage '%.50s' is not supported: use AsymmetricX509Cert and Verify.", k.Type, k.Usage)
		}
		if _, err := directory.AddCertificate(c.tx, c.id, k.DisplayName, k.Key); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) deleteApplication() (answer, error) {
	_, err := directory.DeleteApplication(c.tx, c.id)
	return answer{status: http.StatusNoContent}, err
}

// passwordLifetime is that of a client secret whose end nobody chose.
const passwordLifetime = 2 * 365 * 24 * time.Hour

func (c *call) addPassword() (answer, error) {
	var in struct {
		Credential struct {
			DisplayName string     `json:"displayName"`
			End         *time.Time `json:"endDateTime"`
		} `json:"passwordCredential"`
	}
	if len(c.body) > 0 {
		if err := member("passwordCredential", c.body, &in); err != nil {
			return answer{}, err
		}
	}
	p := in.Credential
	end := c.now.Add(passwordLifetime)
	if p.End != nil {
		end = p.End.UTC()
	}
	if !end.After(c.now) {
		return answer{}, badRequest("Credential lifetime is invalid: endDateTime is in the past.")
	}
	secret, err := directory.AddPasswordFrom(c.tx, c.id, p.DisplayName, c.now, end)
	if err != nil {
		return answer{}, asFault(err)
	}
	app, _, err := directory.ApplicationByID(c.tx, c.id)
	if err != nil {
		return answer{}, err
	}
	o := renderPassword(app.Passwords[len(app.Passwords)-1], secret)
	o["@odata.context"] = c.base + "/$metadata#microsoft.graph.passwordCredential"
	return answer{status: http.StatusOK, body: o}, nil
}

func (c *call) removePassword() (answer, error) {
	var in struct {
		KeyID string `json:"keyId"`
	}
	if err := member("keyId", c.body, &in); err != nil {
		return answer{}, err
	}
	if uuid.Validate(in.KeyID) != nil {
		return answer{}, badRequest("Invalid value specified for property 'keyId'.")
	}
	existed, err := directory.RemovePassword(c.tx, c.id, in.KeyID)
	if err == nil && !existed {
		err = badRequest("No password credential found with keyId: '%s'.", in.KeyID)
	}
	return answer{status: http.StatusNoContent}, err
}
