package entra

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// The refusals of the token endpoint and of discovery. Numbers, OAuth names
// and texts are Entra's own: people search for them.

func refuse(status, code int, name, format string, args ...any) *Error {
	return &Error{Status: status, Code: code, Name: name, Text: fmt.Sprintf(format, args...)}
}

func badRequest(code int, format string, args ...any) *Error {
	return refuse(http.StatusBadRequest, code, "invalid_request", format, args...)
}

func invalidClient(code int, format string, args ...any) *Error {
	return refuse(http.StatusUnauthorized, code, "invalid_client", format, args...)
}

// shown shortens what a client sent before it is sent back.
func shown(s string) string {
	const limit = 1024
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "..."
}

const federationHint = " Check your federated identity credential Subject, Audience and Issuer against the presented assertion." +
	" https://learn.microsoft.com/entra/workload-id/workload-identity-federation"

// TenantNotFound: the path names no tenant of this cloud.
func TenantNotFound(tenant string) *Error {
	return badRequest(90002, "Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud."+
		" Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.", shown(tenant))
}

// DiscoveryTenantNotFound is TenantNotFound as openid-configuration says it.
func DiscoveryTenantNotFound(tenant string) *Error {
	e := TenantNotFound(tenant)
	e.Name = "invalid_tenant"
	return e
}

// InvalidTenantName: the path's tenant is neither a GUID nor a domain.
func InvalidTenantName(tenant string) *Error {
	return badRequest(900023, "Specified tenant identifier '%s' is neither a valid DNS name, nor a valid external domain.", shown(tenant))
}

// NoTenant: an application has to name its tenant, not common.
func NoTenant() *Error {
	return badRequest(50059, "No tenant-identifying information found in either the request or implied by any provided credentials.")
}

// ApplicationNotFound: no application or identity with this client id.
func ApplicationNotFound(clientID, tenantName string) *Error {
	return refuse(http.StatusBadRequest, 700016, "unauthorized_client", "Application with identifier '%s' was not found in the directory '%s'."+
		" This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant."+
		" You may have sent your authentication request to the wrong tenant.", shown(clientID), tenantName)
}

// NoServicePrincipal: the application is registered, and its service
// principal is missing: az ad sp create.
func NoServicePrincipal(appID, tenantName string) *Error {
	return refuse(http.StatusUnauthorized, 7000229, "invalid_client", "The client application %s is missing service principal in the tenant %s."+
		" See instructions here: https://go.microsoft.com/fwlink/?linkid=2225119", appID, tenantName)
}

// InvalidSecret: the client secret is not one of the application's.
func InvalidSecret(appID string) *Error {
	return invalidClient(7000215, "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value,"+
		" not the client secret ID, for a secret added to app '%s'.", appID)
}

// ExpiredSecret: the client secret was right until it expired.
func ExpiredSecret(appID string) *Error {
	return invalidClient(7000222, "The provided client secret keys for app '%s' are expired. Visit the Azure portal to create new keys for your app:"+
		" https://aka.ms/NewClientSecret, or consider using certificate credentials for added security: https://aka.ms/certCreds.", appID)
}

// NoClientCredential: neither secret nor assertion.
func NoClientCredential() *Error {
	return invalidClient(7000218, "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.")
}

// InvalidAssertionSignature: the assertion's key or signature is wrong.
// thumbprint is that of the certificate in hex, or the kid.
func InvalidAssertionSignature(reason, thumbprint string) *Error {
	return invalidClient(700027, "Client assertion contains an invalid signature. [Reason - %s, Thumbprint of key used by client: '%s']", reason, shown(thumbprint))
}

// AssertionTime: the assertion is expired or not valid yet. A zero nbf is
// printed as the epoch.
func AssertionTime(now, notBefore, expiry time.Time) *Error {
	const layout = "2006-01-02T15:04:05.0000000Z"
	return invalidClient(700024, "Client assertion is not within its valid time range. Current time: %s, assertion valid from %s, expiry time of assertion %s."+
		" Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials .",
		now.UTC().Format(layout), notBefore.UTC().Format(layout), expiry.UTC().Format(layout))
}

// AssertionAudience: a certificate assertion is meant for somebody else.
func AssertionAudience() *Error {
	return invalidClient(700023, "Client assertion audience claim does not match Realm issuer."+
		" Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials .")
}

// AssertionSubject: a certificate assertion's sub is not its iss.
func AssertionSubject() *Error {
	return badRequest(50048, "Subject must match the issuer claim in the client assertion.")
}

// NoFederatedCredentials: the client has none at all.
func NoFederatedCredentials(clientID, name string) *Error {
	return invalidClient(70025, "The client '%s'(%s) has no configured federated identity credentials.", clientID, name)
}

// IssuerMismatch: no federated credential has the assertion's issuer.
func IssuerMismatch(issuer string) *Error { return mismatch(700211, "issuer", issuer) }

// AudienceMismatch: the credential for issuer and subject has another audience.
func AudienceMismatch(audience string) *Error { return mismatch(700212, "audience", audience) }

// SubjectMismatch: no federated credential of the issuer has the subject.
func SubjectMismatch(subject string) *Error { return mismatch(700213, "subject", subject) }

func mismatch(code int, what, value string) *Error {
	return invalidClient(code, "No matching federated identity record found for presented assertion %s '%s'."+federationHint, what, shown(value))
}

// SubjectCaseMismatch: the subject differs from a credential's only in case.
func SubjectCaseMismatch(subject string) *Error {
	return invalidClient(7002138, "No matching federated identity record found for presented assertion subject '%s'."+
		" The subject matches with case-insensitive comparison, but not with case-sensitive comparison."+federationHint, shown(subject))
}

// IssuerKeyNotFound: the issuer's key set has no key with this id.
func IssuerKeyNotFound(kid, issuer string) *Error {
	return invalidClient(7000272, "The certificate with identifier %s used to sign the federated credential could not be found in the metadata of"+
		" identity provider %s. Please validate that your Identity Provider's metadata exposes the key used to sign the incoming token.", shown(kid), shown(issuer))
}

// IssuerUnreachable: the issuer's discovery document or keys cannot be had.
func IssuerUnreachable() *Error {
	return badRequest(50166, "Request to External OIDC endpoint failed.")
}

// InvalidTokenType: the assertion's header has a foreign typ.
func InvalidTokenType() *Error {
	return badRequest(5002727, "Invalid JWT header type specified. Allowed types: 'JWT','http://openid.net/specs/jwt/1.0'.")
}

// InvalidToken: the assertion is no usable JWT; why says in a few words.
func InvalidToken(why string) *Error {
	return badRequest(50027, "JWT token is invalid or malformed. %s", why)
}

// OwnTokenAsAssertion: tokens of Entra itself do not federate.
func OwnTokenAsAssertion() *Error {
	return invalidClient(700222, "AAD-issued tokens may not be used for federated identity flows.")
}

// ResourceNotFound: no resource has this name in the tenant.
func ResourceNotFound(resource, tenantName string) *Error {
	return refuse(http.StatusBadRequest, 500011, "invalid_resource", "The resource principal named %s was not found in the tenant named %s."+
		" This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant."+
		" You might have sent your authentication request to the wrong tenant.", shown(resource), tenantName)
}

// ScopeNotDefault: an application must ask for resource/.default.
func ScopeNotDefault(scope string) *Error {
	return refuse(http.StatusBadRequest, 1002012, "invalid_scope", "The provided value for scope %s is not valid."+
		" Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).", shown(scope))
}

// InvalidScope: the scope names no resource, or several.
func InvalidScope(scope string) *Error {
	return refuse(http.StatusBadRequest, 70011, "invalid_scope", "The provided request must include a 'scope' input parameter."+
		" The provided value for the input parameter 'scope' is not valid. The scope %s is not valid.", shown(scope))
}

// MissingParameter: the body lacks a required parameter.
func MissingParameter(name string) *Error {
	return badRequest(900144, "The request body must contain the following parameter: '%s'.", name)
}

// DuplicateParameter: the body has a parameter twice.
func DuplicateParameter(name string) *Error {
	return badRequest(9000411, "The request is not properly formatted. The parameter '%s' is duplicated.", name)
}

// UnsupportedGrant: the grant type is not served.
func UnsupportedGrant(grant string) *Error {
	return refuse(http.StatusBadRequest, 70003, "unsupported_grant_type", "The app requested an unsupported grant type '%s'.", shown(grant))
}

// UnknownInstance: instance discovery for a host that is not ours.
func UnknownInstance() *Error {
	return refuse(http.StatusBadRequest, 50049, "invalid_instance", "Unknown or invalid instance.")
}

// MethodNotAllowed: the token endpoint is for POST.
func MethodNotAllowed(method string) *Error {
	return badRequest(900561, "The endpoint only accepts POST requests. Received a %s request.", shown(method))
}

// InvalidInput: the request contradicts itself or cannot be read.
func InvalidInput(why string) *Error {
	return badRequest(90013, "Invalid input received from the user. %s", why)
}

// BodyTooLarge: more than MaxBody bytes.
func BodyTooLarge() *Error {
	e := InvalidInput(fmt.Sprintf("The request body is larger than %d bytes.", MaxBody))
	e.Status = http.StatusRequestEntityTooLarge
	return e
}

// NotServed: the path is none of the endpoints.
func NotServed(what string) *Error {
	return refuse(http.StatusNotFound, 90023, "invalid_request", "Invalid request. %s", what)
}

// Internal: something broke that the client cannot mend.
func Internal(err error) *Error {
	return (&Error{Status: http.StatusInternalServerError, Code: 90033, Name: "temporarily_unavailable",
		Text: "A transient error has occurred. Please try again."}).Because(err)
}
