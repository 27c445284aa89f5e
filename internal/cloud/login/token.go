package login

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
)

// maxShownClient is how much of a client id the log shows: a GUID's length.
const maxShownClient = 36

// client is who asks for a token and for what, read in one transaction.
type client struct {
	tenant    directory.Tenant
	principal directory.ServicePrincipal
	app       directory.Application // zero for a managed identity
	federated []directory.FederatedCredential
	resource  resource
	// noResource is why resource cannot be had; it is told only to a
	// client that has proved who it is.
	noResource error
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, x *exchange, tenant string, v entra.Version) error {
	req, parseErr := entra.ParseTokenRequest(r, v)
	x.client = req.ClientID[:min(len(req.ClientID), maxShownClient)]
	journal.NoteOf(r.Context()).Client = x.client
	if uuid.Validate(req.CorrelationID) == nil {
		x.CorrelationID = req.CorrelationID
	}
	t, err := s.tenant(tenant)
	if err != nil {
		return err
	}
	if parseErr != nil {
		return parseErr
	}
	if t.any != "" && req.GrantType == entra.GrantClientCredentials {
		return entra.NoTenant()
	}
	issued, err := s.clientCredentials(r.Context(), t.Tenant, req)
	if err != nil {
		return err
	}
	s.logger.InfoContext(r.Context(), "token issued", "client", issued.ClientID, "resource", issued.Resource,
		"expires", issued.ExpiresOn, "correlationID", x.CorrelationID)
	x.WriteHeaders(w.Header())
	lifetime := issued.ExpiresOn.Sub(s.now().Truncate(time.Second))
	return entra.WriteToken(w, v, entra.TokenResponse{
		AccessToken: issued.AccessToken, ExpiresIn: lifetime, RefreshIn: refreshIn(lifetime),
		ExpiresOn: issued.ExpiresOn, NotBefore: issued.NotBefore, Resource: issued.Resource,
	})
}

// clientCredentials is the grant of the same name (RFC 6749, section 4.4).
func (s *Server) clientCredentials(ctx context.Context, tenant directory.Tenant, req entra.TokenRequest) (Issued, error) {
	var none Issued
	if req.GrantType != entra.GrantClientCredentials {
		return none, entra.UnsupportedGrant(req.GrantType)
	}
	if req.ClientID == "" {
		return none, entra.MissingParameter("client_id")
	}
	name, err := resourceName(req)
	if err != nil {
		return none, err
	}
	c, err := s.client(tenant, req.ClientID, name)
	if err != nil {
		return none, err
	}
	proof, err := s.authenticate(ctx, c, req)
	if err != nil {
		return none, err
	}
	if c.noResource != nil {
		return none, c.noResource
	}
	return s.issue(c.principal, c.resource, proof)
}

func (s *Server) client(tenant directory.Tenant, clientID, resourceName string) (client, error) {
	c := client{tenant: tenant}
	err := s.db.View(func(tx *state.Tx) error {
		sp, ok, err := directory.ServicePrincipalByAppID(tx, clientID)
		if err != nil {
			return err
		}
		if !ok || sp.TenantID != tenant.ID {
			return noPrincipal(tx, tenant, clientID)
		}
		c.principal = sp
		parent := sp.ID
		if sp.Type == directory.TypeApplication {
			if c.app, ok, err = directory.ApplicationByAppID(tx, sp.AppID); err != nil {
				return err
			}
			if !ok {
				return entra.ApplicationNotFound(clientID, tenant.DisplayName)
			}
			parent = c.app.ObjectID
		}
		if c.federated, err = directory.ListFederatedCredentials(tx, parent); err != nil {
			return err
		}
		c.federated = s.replica.see(parent, c.federated, s.now(), s.propagation())
		c.resource, c.noResource = findResource(tx, tenant, resourceName)
		return nil
	})
	return c, err
}

// noPrincipal says what is missing: the application, or only its principal.
func noPrincipal(tx *state.Tx, tenant directory.Tenant, clientID string) error {
	app, ok, err := directory.ApplicationByAppID(tx, clientID)
	switch {
	case err != nil:
		return err
	case ok && app.TenantID == tenant.ID:
		return entra.NoServicePrincipal(app.AppID, tenant.DisplayName)
	}
	return entra.ApplicationNotFound(clientID, tenant.DisplayName)
}

// authenticate checks the client's credential and says of which kind it is.
func (s *Server) authenticate(ctx context.Context, c client, req entra.TokenRequest) (proof string, err error) {
	switch {
	case req.Secret != "" && req.Assertion != "":
		return "", entra.InvalidInput("The client must authenticate in one way only.")
	case req.Secret != "":
		return provedBySecret, checkSecret(c, req.Secret, s.now().Unix())
	case req.Assertion != "":
		return provedByKey, s.checkAssertion(ctx, c, req)
	}
	return "", entra.NoClientCredential()
}

// checkSecret compares with every secret of the application. now is in
// seconds since the epoch.
func checkSecret(c client, secret string, now int64) error {
	expired := false
	for _, p := range c.app.Passwords {
		if !p.Matches(secret) {
			continue
		}
		if now < p.NotAfter.Unix() {
			return nil
		}
		expired = true
	}
	if expired {
		return entra.ExpiredSecret(c.principal.AppID)
	}
	return entra.InvalidSecret(c.principal.AppID)
}

// resourceName is what the client asks a token for. Of a v2 scope it is
// what stands before /.default, a second slash included; the scopes of
// OpenID Connect, which some clients always send, mean nothing here.
func resourceName(req entra.TokenRequest) (string, error) {
	if req.Version == entra.V1 {
		if req.Resource == "" {
			return "", entra.MissingParameter("resource")
		}
		return req.Resource, nil
	}
	if req.Scope == "" {
		return "", entra.MissingParameter("scope")
	}
	name := ""
	for _, scope := range strings.Fields(req.Scope) {
		switch scope {
		case "openid", "profile", "email", "offline_access":
			continue
		}
		res, ok := strings.CutSuffix(scope, "/.default")
		if !ok || res == "" {
			return "", entra.ScopeNotDefault(scope)
		}
		if name != "" && name != res {
			return "", entra.InvalidScope(req.Scope)
		}
		name = res
	}
	if name == "" {
		return "", entra.InvalidScope(req.Scope)
	}
	return name, nil
}
