package login

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/oidc"
	"github.com/lanyard-id/lanyard/internal/token"
)

// How long tokens live. Entra counts the second of issue: 3599, not 3600.
const (
	applicationLifetime     = time.Hour - time.Second
	managedIdentityLifetime = 24*time.Hour - time.Second
	// backdate is how far before their issue tokens start to be valid.
	backdate = 5 * time.Minute
	// refreshFrom is the lifetime from which clients are told to refresh
	// at half time.
	refreshFrom = 2 * time.Hour
)

// The ways in which a client proved who it is, as appidacr says it.
const (
	provedBySecret = "1"
	provedByKey    = "2" // certificate, federated assertion, managed identity
)

// Issued is an access token as ManagedIdentityToken returns it.
type Issued = token.Token

// accessClaims are the claims of an access token for an application or
// managed identity, version 1.0 or 2.0 (the first three groups differ).
type accessClaims struct {
	Version string `json:"ver"`

	AppID    string `json:"appid,omitempty"`    // 1.0
	AppIDACR string `json:"appidacr,omitempty"` // 1.0
	AZP      string `json:"azp,omitempty"`      // 2.0
	AZPACR   string `json:"azpacr,omitempty"`   // 2.0

	Issuer           string `json:"iss"`
	Audience         string `json:"aud"`
	IssuedAt         int64  `json:"iat"`
	NotBefore        int64  `json:"nbf"`
	Expiry           int64  `json:"exp"`
	AIO              string `json:"aio"`
	IdentityProvider string `json:"idp,omitempty"` // 1.0
	IDType           string `json:"idtyp"`
	ObjectID         string `json:"oid"`
	RH               string `json:"rh"`
	Subject          string `json:"sub"`
	TenantID         string `json:"tid"`
	UTI              string `json:"uti"`
	MIResourceID     string `json:"xms_mirid,omitempty"`

	Roles []string `json:"roles,omitempty"` // permissions, in tokens for Graph
	WIDs  []string `json:"wids,omitempty"`  // directory roles, in tokens for Graph
}

// A resource is something that tokens are issued for.
type resource struct {
	name    string // as asked: the audience of 1.0 tokens
	appID   string // the audience of 2.0 tokens
	version int    // of the tokens it accepts
}

// findResource looks up what a client asked a token for.
func findResource(tx *state.Tx, tenant directory.Tenant, name string) (resource, error) {
	if r, ok := azure.FindResource(name); ok {
		return resource{name: name, appID: r.AppID, version: 1}, nil
	}
	app, ok, err := directory.ApplicationByAppID(tx, strings.TrimPrefix(name, "spn:"))
	if err == nil && !ok {
		app, ok, err = directory.ApplicationByURI(tx, name)
	}
	if err != nil {
		return resource{}, entra.Internal(err)
	}
	if !ok || app.TenantID != tenant.ID {
		return resource{}, entra.ResourceNotFound(name, tenant.DisplayName)
	}
	return resource{name: name, appID: app.AppID, version: max(app.TokenVersion, 1)}, nil
}

// ManagedIdentityToken issues a token to the managed identity with this
// object id, as the metadata service hands it out: valid for 24 hours,
// from five minutes ago. An unknown resource is an *entra.Error; an unknown
// principal is directory.ErrNotFound.
func (s *Server) ManagedIdentityToken(ctx context.Context, principalID, resourceName string) (Issued, error) {
	return s.tokenFor(ctx, directory.TypeManagedIdentity, principalID, resourceName)
}

// ApplicationToken issues a token to the application whose service principal
// has this object id, without a credential: for the cloud's own requests to
// its own hosts. Errors are those of ManagedIdentityToken.
func (s *Server) ApplicationToken(ctx context.Context, principalID, resourceName string) (Issued, error) {
	return s.tokenFor(ctx, directory.TypeApplication, principalID, resourceName)
}

func (s *Server) tokenFor(ctx context.Context, kind, principalID, resourceName string) (Issued, error) {
	if err := ctx.Err(); err != nil {
		return Issued{}, err
	}
	var (
		sp  directory.ServicePrincipal
		res resource
	)
	err := s.db.View(func(tx *state.Tx) error {
		var (
			ok  bool
			err error
		)
		sp, ok, err = directory.ServicePrincipalByID(tx, principalID)
		if err != nil {
			return err
		}
		if !ok || sp.Type != kind {
			return fmt.Errorf("principal %q of type %s: %w", principalID, kind, directory.ErrNotFound)
		}
		tenant, ok, err := directory.TenantByName(tx, sp.TenantID)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("tenant %q of principal %q: %w", sp.TenantID, sp.ID, directory.ErrNotFound)
		}
		res, err = findResource(tx, tenant, resourceName)
		return err
	})
	if err != nil {
		return Issued{}, err
	}
	return s.issue(sp, res, provedByKey)
}

// issue signs a token for an authenticated principal.
func (s *Server) issue(sp directory.ServicePrincipal, res resource, proof string) (Issued, error) {
	now := s.now().Truncate(time.Second)
	lifetime := applicationLifetime
	if sp.Type == directory.TypeManagedIdentity {
		lifetime = managedIdentityLifetime
	}
	start, end := now.Add(-backdate), now.Add(lifetime)
	c := accessClaims{
		IssuedAt: start.Unix(), NotBefore: start.Unix(), Expiry: end.Unix(),
		AIO: opaque(), RH: "1." + opaqueOf(sp.TenantID+res.appID) + ".", UTI: opaque(),
		IDType: "app", ObjectID: sp.ID, Subject: sp.ID, TenantID: sp.TenantID,
	}
	if res.version == 2 {
		c.Version, c.Issuer, c.Audience = "2.0", issuerV2(sp.TenantID), res.appID
		c.AZP, c.AZPACR = sp.AppID, proof
	} else {
		c.Version, c.Issuer, c.Audience = "1.0", issuerV1(sp.TenantID), res.name
		c.AppID, c.AppIDACR, c.IdentityProvider = sp.AppID, proof, issuerV1(sp.TenantID)
	}
	if sp.ResourceID != "" {
		id, err := azure.ParseResourceID(sp.ResourceID)
		if err != nil {
			return Issued{}, fmt.Errorf("resource of principal %s: %w", sp.ID, err)
		}
		c.MIResourceID = id.IdentityString()
	}
	if res.appID == azure.AppGraph {
		c.Roles, c.WIDs = sp.Permissions, sp.DirectoryRoles
	}
	key := s.keys.Load().signing()
	header := map[string]any{"kid": key.id}
	if res.version != 2 {
		header["x5t"] = key.id
	}
	raw, err := oidc.Sign(key.private, header, c)
	if err != nil {
		return Issued{}, fmt.Errorf("issuing token to %s: %w", sp.AppID, err)
	}
	return Issued{AccessToken: raw, ExpiresOn: end, NotBefore: start, Resource: res.name, ClientID: sp.AppID}, nil
}

func issuerV1(tenantID string) string { return "https://sts.windows.net/" + tenantID + "/" }

func issuerV2(tenantID string) string { return "https://" + azure.HostLogin + "/" + tenantID + "/v2.0" }

// opaque makes a random identifier such as uti.
func opaque() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// opaqueOf makes an identifier that is the same for the same input.
func opaqueOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(sum[:24])
}

// refreshIn is when a client should ask for the next token: at half time of
// long-lived ones, 0 (unsaid) for others.
func refreshIn(lifetime time.Duration) time.Duration {
	if lifetime < refreshFrom {
		return 0
	}
	return lifetime / 2
}
