package graph

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
)

// renderFederated makes the wire form. A credential that was stored before there were ids has one that follows from its
// place.
func (c *call) renderFederated(f directory.FederatedCredential) object {
	o := object{
		"id":   or(f.ID, uuid.NewSHA1(uuid.NameSpaceOID, []byte(c.id+"/"+strings.ToLower(f.Name))).String()),
		"name": f.Name, "issuer": f.Issuer, "subject": f.Subject, "description": nil, "audiences": f.Audiences,
	}
	if f.Description != "" {
		o["description"] = f.Description
	}
	if c.version == "beta" {
		o["claimsMatchingExpression"] = nil
		if f.Expression != "" {
			o["subject"], o["claimsMatchingExpression"] = nil, object{"value": f.Expression, "languageVersion": 1}
		}
	}
	return o
}

func (c *call) federatedPath() string {
	return applications + "('" + c.id + "')/federatedIdentityCredentials"
}

func (c *call) listFederated() (answer, error) {
	all, err := directory.ListFederatedCredentials(c.tx, c.id)
	if err != nil {
		return answer{}, err
	}
	var out []object
	for _, f := range all {
		if f.Expression == "" || c.version == "beta" { // v1.0 does not know the flexible ones
			out = append(out, c.renderFederated(f))
		}
	}
	return c.list(c.federatedPath(), out)
}

// findFederated finds the credential that the path names by id, name, or name='x'.
func (c *call) findFederated() (directory.FederatedCredential, error) {
	want := c.sub
	if name, ok := alternate(c.sub, "name"); ok {
		want = name
	}
	all, err := directory.ListFederatedCredentials(c.tx, c.id)
	if err != nil {
		return directory.FederatedCredential{}, err
	}
	for _, f := range all {
		if id, _ := c.renderFederated(f)["id"].(string); strings.EqualFold(id, want) || strings.EqualFold(f.Name, want) {
			return f, nil
		}
	}
	return directory.FederatedCredential{}, notFound(want)
}

func (c *call) getFederated() (answer, error) {
	f, err := c.findFederated()
	if err != nil {
		return answer{}, err
	}
	return c.one(http.StatusOK, c.federatedPath(), c.renderFederated(f))
}

// readFederated applies the body to f.
func (c *call) readFederated(f *directory.FederatedCredential) error {
	members, err := c.members()
	if err != nil {
		return err
	}
	for name, raw := range members {
		switch name {
		case "name":
			had := f.Name
			if err = member(name, raw, &f.Name); err == nil && had != "" && f.Name != had {
				err = badRequest("Property 'name' of a federated identity credential cannot be changed.")
			}
		case "issuer":
			err = member(name, raw, &f.Issuer)
		case "subject":
			f.Subject = ""
			err = member(name, raw, &f.Subject)
		case "description":
			f.Description = ""
			err = member(name, raw, &f.Description)
		case "audiences":
			f.Audiences = nil
			err = member(name, raw, &f.Audiences)
		case "claimsMatchingExpression":
			err = c.readExpression(raw, f)
		case "id":
		default:
			err = badRequest("Invalid property '%.100s'.", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *call) readExpression(raw json.RawMessage, f *directory.FederatedCredential) error {
	if c.version != "beta" {
		return badRequest("Invalid property 'claimsMatchingExpression': it is served under /beta only.")
	}
	var in *struct {
		Value           string `json:"value"`
		LanguageVersion int    `json:"languageVersion"`
	}
	if err := member("claimsMatchingExpression", raw, &in); err != nil {
		return err
	}
	f.Expression = ""
	if in == nil {
		return nil
	}
	if in.LanguageVersion != 1 || in.Value == "" {
		return badRequest("Invalid value specified for property 'claimsMatchingExpression': it needs a value and languageVersion 1.")
	}
	f.Expression = in.Value
	return nil
}

func (c *call) createFederated() (answer, error) {
	var f directory.FederatedCredential
	if err := c.readFederated(&f); err != nil {
		return answer{}, err
	}
	_, exists, err := directory.GetFederatedCredential(c.tx, c.id, f.Name)
	if err != nil {
		return answer{}, err
	}
	if exists {
		return answer{}, conflict("FederatedIdentityCredential with name %s already exists.", f.Name)
	}
	if err := c.putFederated(f); err != nil {
		return answer{}, err
	}
	if f, _, err = directory.GetFederatedCredential(c.tx, c.id, f.Name); err != nil {
		return answer{}, err
	}
	return c.one(http.StatusCreated, c.federatedPath(), c.renderFederated(f))
}

func (c *call) patchFederated() (answer, error) {
	f, err := c.findFederated()
	if err != nil {
		return answer{}, err
	}
	if err := c.readFederated(&f); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusNoContent}, c.putFederated(f)
}

func (c *call) putFederated(f directory.FederatedCredential) error {
	err := c.noted(func() error { _, err := directory.PutFederatedCredential(c.tx, c.id, f); return err })
	var e *Error
	switch {
	case errors.Is(err, directory.ErrFederatedDuplicate):
		e = conflict("FederatedIdentityCredential with the same issuer and subject already exists: %v.", err)
	case errors.Is(err, directory.ErrFederatedLimit):
		e = badRequest("The maximum number of federated identity credentials of an application (%d) has been reached. Delete one first.", directory.MaxFederatedCredentials)
	case errors.Is(err, directory.ErrFederatedName):
		e = badRequest("Federated Identity Credential name '%.200s' is invalid: 3 to 120 letters, digits, '-' and '_', the first one a letter or digit.", f.Name)
	case errors.Is(err, directory.ErrFederatedAudience):
		e = badRequest("Federated identity credentials must have exactly one audience.")
	default:
		return asFault(err)
	}
	e.Err = err
	return e
}

// noted makes a change and tells what the credentials were before it.
func (c *call) noted(change func() error) error {
	before, err := directory.ListFederatedCredentials(c.tx, c.id)
	if err != nil {
		return err
	}
	if err := change(); err != nil || c.Changed == nil {
		return err
	}
	c.Changed(c.id, before)
	return nil
}

func (c *call) deleteFederated() (answer, error) {
	f, err := c.findFederated()
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusNoContent}, c.noted(func() error {
		_, err := directory.DeleteFederatedCredential(c.tx, c.id, f.Name)
		return err
	})
}
