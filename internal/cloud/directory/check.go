package directory

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Check tells whether the directory's objects agree with each other. The
// error joins one line per broken rule; nil means sound.
//
//   - every object is stored under its own id and belongs to a tenant
//   - client ids are unique; applications and principals with the same
//     client id are the two halves of one registration
//   - every managed identity names its resource, and no two the same
//   - every federated credential is valid and has a living parent, which
//     has at most 20 of them and no (issuer, subject) twice
//   - no index entry points to an object that does not carry its key
func Check(tx *state.Tx) error {
	c := &checker{tx: tx}
	c.tenants()
	c.applications()
	c.principals()
	c.federated()
	c.index(indexAppID, func(id string) ([]string, bool) {
		a, ok := c.apps[id]
		return []string{a.AppID}, ok
	})
	c.index(indexURI, func(id string) ([]string, bool) {
		a, ok := c.apps[id]
		uris := make([]string, 0, len(a.IdentifierURIs))
		for _, u := range a.IdentifierURIs {
			uris = append(uris, fold(u))
		}
		return uris, ok
	})
	c.index(indexPrincipalApp, func(id string) ([]string, bool) {
		p, ok := c.sps[id]
		return []string{p.AppID}, ok
	})
	c.index(indexPrincipalARM, func(id string) ([]string, bool) {
		p, ok := c.sps[id]
		return []string{fold(p.ResourceID)}, ok
	})
	return errors.Join(c.errs...)
}

type checker struct {
	tx   *state.Tx
	ids  map[string]bool // of tenants
	apps map[string]Application
	sps  map[string]ServicePrincipal
	errs []error
}

func (c *checker) failf(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf(format, args...))
}

func load[T any](c *checker, bucket string, id func(T) string) map[string]T {
	keys, err := state.Keys(c.tx, bucket, "")
	if err != nil {
		c.failf("%s: %w", bucket, err)
	}
	m := map[string]T{}
	for _, k := range keys {
		v, _, err := state.Get[T](c.tx, bucket, k)
		if err != nil {
			c.errs = append(c.errs, err)
			continue
		}
		if id(v) != k || uuid.Validate(k) != nil || fold(k) != k {
			c.failf("%s: %q is stored under %q, want the same lower-case GUID", bucket, id(v), k)
		}
		m[k] = v
	}
	return m
}

func (c *checker) tenants() {
	c.ids = map[string]bool{}
	domains := map[string]string{}
	ts := load(c, bucketTenants, func(t Tenant) string { return t.ID })
	for id, t := range ts {
		c.ids[id] = true
		if other, ok := domains[t.Domain]; ok {
			c.failf("tenants %s and %s both have domain %s", id, other, t.Domain)
		}
		domains[t.Domain] = id
	}
	if _, err := HomeTenant(c.tx); err != nil && len(ts) > 0 {
		c.failf("there are tenants but no home tenant: %w", err)
	}
}

func (c *checker) applications() {
	c.apps = load(c, bucketApps, func(a Application) string { return a.ObjectID })
	for id, a := range c.apps {
		if !c.ids[a.TenantID] {
			c.failf("application %s is in tenant %q, which does not exist", id, a.TenantID)
		}
		c.pointsTo(indexAppID, a.AppID, id)
		for _, u := range a.IdentifierURIs {
			c.pointsTo(indexURI, fold(u), id)
		}
		for _, p := range a.Passwords {
			if len(p.Hash) != 32 || p.NotAfter.IsZero() {
				c.failf("application %s: client secret %s has no hash or no expiry", id, p.KeyID)
			}
		}
	}
}

func (c *checker) principals() {
	c.sps = load(c, bucketPrincipals, func(p ServicePrincipal) string { return p.ID })
	for id, p := range c.sps {
		if !c.ids[p.TenantID] {
			c.failf("service principal %s is in tenant %q, which does not exist", id, p.TenantID)
		}
		if _, both := c.apps[id]; both {
			c.failf("object id %s is an application and a service principal", id)
		}
		c.pointsTo(indexPrincipalApp, p.AppID, id)
		app, hasApp, err := ApplicationByAppID(c.tx, p.AppID)
		if err != nil {
			c.errs = append(c.errs, err)
		}
		switch {
		case p.Type == TypeManagedIdentity && p.ResourceID == "":
			c.failf("managed identity %s has no resource id", id)
		case p.Type == TypeManagedIdentity && hasApp:
			c.failf("managed identity %s has the client id of application %s", id, app.ObjectID)
		case p.Type == TypeManagedIdentity:
			c.pointsTo(indexPrincipalARM, fold(p.ResourceID), id)
		case p.Type != TypeApplication:
			c.failf("service principal %s has type %q", id, p.Type)
		case !hasApp || app.TenantID != p.TenantID:
			c.failf("service principal %s has no application in its tenant", id)
		case p.ResourceID != "":
			c.failf("service principal %s of an application has resource id %s", id, p.ResourceID)
		}
	}
}

func (c *checker) federated() {
	keys, err := state.Keys(c.tx, bucketFederated, "")
	if err != nil {
		c.errs = append(c.errs, err)
	}
	count := map[string]int{}
	seen := map[string]string{}
	for _, k := range keys {
		fc, _, err := state.Get[FederatedCredential](c.tx, bucketFederated, k)
		if err != nil {
			c.errs = append(c.errs, err)
			continue
		}
		parent, _, _ := strings.Cut(k, "/")
		if k != federatedKey(parent, fc.Name) {
			c.failf("federated credential %q is stored under %q", fc.Name, k)
		}
		if err := federatedParent(c.tx, parent); err != nil {
			c.failf("federated credential %q: %w", k, err)
		}
		if err := fc.validate(); err != nil {
			c.failf("federated credential %q: %w", k, err)
		}
		pair := parent + "\x00" + fc.Issuer + "\x00" + fc.Subject + "\x00" + fc.Expression
		if other, ok := seen[pair]; ok {
			c.failf("federated credentials %q and %q of %s have the same issuer and subject", other, fc.Name, parent)
		}
		seen[pair] = fc.Name
		count[parent]++
		if count[parent] == MaxFederatedCredentials+1 {
			c.failf("%s has more than %d federated credentials", parent, MaxFederatedCredentials)
		}
	}
}

func (c *checker) pointsTo(index, key, id string) {
	got, ok, err := state.Get[string](c.tx, index, key)
	if err != nil || !ok || got != id {
		c.failf("%s: %q is %q, want %q (%v)", index, key, got, id, err)
	}
}

func (c *checker) index(index string, keysOf func(id string) ([]string, bool)) {
	keys, err := state.Keys(c.tx, index, "")
	if err != nil {
		c.errs = append(c.errs, err)
	}
	for _, k := range keys {
		id, _, err := state.Get[string](c.tx, index, k)
		if err != nil {
			c.errs = append(c.errs, err)
			continue
		}
		if own, ok := keysOf(id); !ok || !slices.Contains(own, k) {
			c.failf("%s: %q points to %q, which does not carry it", index, k, id)
		}
	}
}
