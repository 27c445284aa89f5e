package graph

// Codes of Graph's errors.
const (
	CodeNotFound        = "Request_ResourceNotFound"
	CodeBadRequest      = "Request_BadRequest"
	CodeDenied          = "Authorization_RequestDenied"
	CodeMultipleObjects = "Request_MultipleObjectsWithSameKeyValue"
	CodeInvalidToken    = "InvalidAuthenticationToken"
)

// Types of service principals.
const (
	TypeApplication     = "Application"
	TypeManagedIdentity = "ManagedIdentity"
)

// A Page is one page of a collection.
type Page[T any] struct {
	Context  string `json:"@odata.context,omitempty"`
	Value    []T    `json:"value"`
	NextLink string `json:"@odata.nextLink,omitempty"`
}

// An Application is the registration of an application.
type Application struct {
	ID              string   `json:"id,omitempty"`    // object id
	AppID           string   `json:"appId,omitempty"` // client id
	DisplayName     string   `json:"displayName,omitempty"`
	SignInAudience  string   `json:"signInAudience,omitempty"` // for example AzureADMyOrg
	IdentifierURIs  []string `json:"identifierUris,omitempty"`
	Tags            []string `json:"tags,omitempty"`
	CreatedDateTime string   `json:"createdDateTime,omitempty"` // RFC 3339
}

// A ServicePrincipal is what an application, or a managed identity, is within
// one tenant; roles are assigned to it.
type ServicePrincipal struct {
	ID                     string   `json:"id,omitempty"`    // object id, principal id
	AppID                  string   `json:"appId,omitempty"` // client id
	DisplayName            string   `json:"displayName,omitempty"`
	ServicePrincipalType   string   `json:"servicePrincipalType,omitempty"`
	ServicePrincipalNames  []string `json:"servicePrincipalNames,omitempty"`
	AlternativeNames       []string `json:"alternativeNames,omitempty"` // a managed identity's ARM id is among them
	AppOwnerOrganizationID string   `json:"appOwnerOrganizationId,omitempty"`
	AccountEnabled         *bool    `json:"accountEnabled,omitempty"`
}

// A FederatedIdentityCredential lets tokens of another issuer stand for an
// application.
type FederatedIdentityCredential struct {
	ID          string   `json:"id,omitempty"`
	Name        string   `json:"name,omitempty"` // cannot be changed
	Issuer      string   `json:"issuer,omitempty"`
	Subject     string   `json:"subject,omitempty"`
	Description string   `json:"description,omitempty"`
	Audiences   []string `json:"audiences,omitempty"` // exactly one
}

// An ErrorBody is the body of a refusal.
type ErrorBody struct {
	Error ErrorDetail `json:"error"`
}

// An ErrorDetail says why.
type ErrorDetail struct {
	Code       string      `json:"code"`
	Message    string      `json:"message"`
	InnerError *InnerError `json:"innerError,omitempty"`
}

// An InnerError names the request that was refused.
type InnerError struct {
	Date            string `json:"date"` // RFC 3339 without zone
	RequestID       string `json:"request-id"`
	ClientRequestID string `json:"client-request-id"`
}
