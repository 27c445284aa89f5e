package arm

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/login"
	"github.com/lanyard-id/lanyard/internal/cloud/management/roles"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

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
		sub, ok, err := FindSubscription(tx, segments[2])
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
func (c *Call) authorize() error {
	if c.ID.SubscriptionID != "" {
		sub, ok, err := FindSubscription(c.Tx, c.ID.SubscriptionID)
		switch {
		case err != nil:
			return err
		case !ok:
			return SubscriptionNotFound(c.ID.SubscriptionID)
		case sub.TenantID != c.Caller.TenantID:
			return wrongTenant(c.Caller.TenantID, sub.TenantID)
		}
	}
	if c.Type.Open && c.Method == http.MethodGet {
		return nil
	}
	scope := c.ID
	scope.Provider = c.providerForScope()
	return c.Require(c.Action, scope.String())
}

// providerForScope hides the namespace of /providers/NS, which is not part of a scope.
func (c *Call) providerForScope() string {
	if c.Type.Name == TypeProviders {
		return ""
	}
	return c.ID.Provider
}

// Require refuses the call unless the caller may do action at scope.
func (c *Call) Require(action, scope string) error {
	d, err := roles.Authorize(c.Tx, c.Caller.ObjectID, action, false, scope)
	if err != nil {
		return err
	}
	if !d.Allowed {
		return Unauthorized(c.Caller.AppID, c.Caller.ObjectID, action, scope, d)
	}
	return nil
}

func wrongTenant(have, want string) *Error {
	return unauthenticated(want, "InvalidAuthenticationTokenTenant", fmt.Sprintf(
		"The access token is from the wrong issuer 'https://sts.windows.net/%s/'. It must match the tenant 'https://sts.windows.net/%s/' associated with this subscription. Please use the authority (URL) 'https://login.windows.net/%s' to get the token.", have, want, want), nil)
}
