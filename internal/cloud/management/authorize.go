package management

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azrbac"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Authorize decides whether a principal may perform action (a data action if data) at scope, by the role assignments in
// tx. Resource Manager and the vaults ask here.
func Authorize(tx *state.Tx, principalID, action string, data bool, scope string) (azrbac.Decision, error) {
	rules, err := loadRules(tx)
	if err != nil {
		return azrbac.Decision{}, err
	}
	return rules.decide(principalID, action, data, scope), nil
}

// rules are all role assignments and definitions, read once for several questions in one transaction.
type rules struct {
	assignments []azrbac.Assignment
	definitions []azrbac.Definition
}

func loadRules(tx *state.Tx) (rules, error) {
	assignments, err := state.List[Assignment](tx, bucketAssignments, "")
	if err != nil {
		return rules{}, err
	}
	custom, err := state.List[azrbac.Definition](tx, bucketDefinitions, "")
	if err != nil {
		return rules{}, err
	}
	r := rules{definitions: append(azrbac.BuiltIn(), custom...)}
	for _, a := range assignments {
		r.assignments = append(r.assignments, azrbac.Assignment{ID: a.id().String(), PrincipalID: a.PrincipalID, RoleID: a.RoleID, Scope: a.Scope})
	}
	return r, nil
}

func (r rules) decide(principalID, action string, data bool, scope string) azrbac.Decision {
	return azrbac.Evaluate(azrbac.Request{PrincipalIDs: []string{principalID}, Action: action, Data: data, Scope: scope}, r.assignments, r.definitions)
}

// authenticate finds out who calls. path only chooses the tenant that the challenge names.
func (s *Server) authenticate(r *http.Request, path string) (login.Claims, error) {
	refuse := func(code, message string, err error) (login.Claims, error) {
		var tenant string
		if err := s.DB.View(func(tx *state.Tx) (err error) { tenant, err = challengeTenant(tx, path); return err }); err != nil {
			return login.Claims{}, err
		}
		return login.Claims{}, unauthenticated(tenant, code, message, err)
	}
	values := r.Header.Values("Authorization")
	if len(values) == 0 || values[0] == "" {
		return refuse("AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.", nil)
	}
	scheme, bearer, _ := strings.Cut(values[0], " ")
	if len(values) > 1 || !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		return refuse("AuthenticationFailed", "Authentication failed. The 'Authorization' header is provided in an invalid format.", nil)
	}
	caller, err := s.Verify(r.Context(), strings.TrimSpace(bearer), azure.ManagementAudiences()...)
	if err != nil {
		code, message := tokenFault(err)
		if code == "" {
			return login.Claims{}, err
		}
		return refuse(code, message, err)
	}
	return caller, nil
}

// tokenFault says in Resource Manager's words why a token was refused; the code is "" if that is not the caller's fault.
func tokenFault(err error) (code, message string) {
	var e *login.TokenError
	if !errors.As(err, &e) {
		return "", ""
	}
	switch {
	case errors.Is(e.Kind, login.ErrTokenExpired):
		return "ExpiredAuthenticationToken", "The access token has expired. Get a new one and retry."
	case errors.Is(e.Kind, login.ErrTokenAudience):
		return "InvalidAuthenticationTokenAudience", fmt.Sprintf("The access token has been obtained for wrong audience or resource '%.300s'. It should exactly match with one of the allowed audiences '%s'.", e.Found, strings.Join(azure.ManagementAudiences(), "', '"))
	case errors.Is(e.Kind, login.ErrTokenIssuer):
		return "InvalidAuthenticationTokenTenant", fmt.Sprintf("The access token is from the wrong issuer '%.300s'. It must match the tenant associated with this subscription.", e.Found)
	}
	return "InvalidAuthenticationToken", "The access token is invalid."
}

func unauthenticated(tenant, code, message string, err error) *Error {
	return &Error{Status: http.StatusUnauthorized, Code: code, Message: message, Err: err,
		Challenge: fmt.Sprintf(`Bearer authorization_uri="https://login.windows.net/%s", error="invalid_token", error_description="%s"`, tenant, challengeText(message))}
}

// challengeText makes a message fit between the quotes of a header.
func challengeText(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, s)
}

// challengeTenant is the tenant of the subscription in the path, else the home tenant.
func challengeTenant(tx *state.Tx, path string) (string, error) {
	segments := strings.Split(path, "/")
	if len(segments) > 2 && strings.EqualFold(segments[1], "subscriptions") {
		sub, ok, err := state.Get[Subscription](tx, bucketSubscriptions, azure.Fold(segments[2]))
		if err != nil || ok {
			return sub.TenantID, err
		}
	}
	home, err := directory.HomeTenant(tx)
	if errors.Is(err, directory.ErrNotFound) {
		return "common", nil
	}
	return home.ID, err
}

// authorize refuses the call unless the subscription exists in the caller's tenant and a role allows it.
func (c *call) authorize() error {
	if c.id.SubscriptionID != "" {
		sub, ok, err := state.Get[Subscription](c.tx, bucketSubscriptions, azure.Fold(c.id.SubscriptionID))
		switch {
		case err != nil:
			return err
		case !ok:
			return subscriptionNotFound(c.id.SubscriptionID)
		case sub.TenantID != c.caller.TenantID:
			return wrongTenant(c.caller.TenantID, sub.TenantID)
		}
	}
	if c.typ.open && c.method == http.MethodGet {
		return nil
	}
	scope := c.id
	scope.Provider = c.providerForScope()
	return c.require(c.action, scope.String())
}

// providerForScope hides the namespace of /providers/NS, which is not part of a scope.
func (c *call) providerForScope() string {
	if c.typ.name == typeProviders {
		return ""
	}
	return c.id.Provider
}

// require refuses the call unless the caller may do action at scope.
func (c *call) require(action, scope string) error {
	d, err := Authorize(c.tx, c.caller.ObjectID, action, false, scope)
	if err != nil {
		return err
	}
	if !d.Allowed {
		return unauthorized(c.caller.AppID, c.caller.ObjectID, action, scope, d)
	}
	return nil
}

func wrongTenant(have, want string) *Error {
	return unauthenticated(want, "InvalidAuthenticationTokenTenant", fmt.Sprintf(
		"The access token is from the wrong issuer 'https://sts.windows.net/%s/'. It must match the tenant 'https://sts.windows.net/%s/' associated with this subscription. Please use the authority (URL) 'https://login.windows.net/%s' to get the token.", have, want, want), nil)
}

// CreateSubscription makes a subscription and gives its owner the role Owner on it. It is the only way to a first role
// assignment, has no HTTP form, and does nothing if the subscription exists.
func (s *Server) CreateSubscription(_ context.Context, sub Subscription, ownerPrincipalID string) error {
	sub.ID = azure.Fold(sub.ID)
	if err := sub.validate(); err != nil {
		return err
	}
	return s.DB.Update(func(tx *state.Tx) error {
		_, exists, err := state.Get[Subscription](tx, bucketSubscriptions, sub.ID)
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
		if err := state.Put(tx, bucketSubscriptions, sub.ID, sub); err != nil {
			return err
		}
		now := s.now().UTC()
		first := Assignment{Name: newGUID(), Scope: azure.Subscription(sub.ID).String(), RoleID: azure.RoleOwner,
			PrincipalID: owner.ID, PrincipalType: "ServicePrincipal", Created: now, Updated: now, CreatedBy: owner.ID, UpdatedBy: owner.ID}
		return state.Put(tx, bucketAssignments, first.Name, first)
	})
}
