package graph

import (
	"context"
	"fmt"
	"net/http"
)

const (
	applications = "applications"
	principals   = "servicePrincipals"
	credentials  = "federatedIdentityCredentials"
)

// CreateApplication registers an application and returns it with its ids.
func (c *Client) CreateApplication(ctx context.Context, a Application) (Application, error) {
	var made Application
	if err := c.do(ctx, http.MethodPost, nil, a, &made, applications); err != nil {
		return Application{}, fmt.Errorf("creating the application %q: %w", a.DisplayName, err)
	}
	return made, nil
}

// Application returns the one with an object id.
func (c *Client) Application(ctx context.Context, objectID string) (Application, error) {
	var found Application
	if err := c.do(ctx, http.MethodGet, nil, nil, &found, applications, objectID); err != nil {
		return Application{}, fmt.Errorf("reading the application with object id %s: %w", objectID, err)
	}
	return found, nil
}

// ApplicationByAppID returns the one with a client id, or ErrNotFound.
func (c *Client) ApplicationByAppID(ctx context.Context, appID string) (Application, error) {
	found, err := list[Application](ctx, c, filter("appId", appID), applications)
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Application{}, fmt.Errorf("looking for the application with client id %s: %w", appID, err)
	}
	return found[0], nil
}

// ApplicationsByDisplayName returns all with a name: names are not unique.
func (c *Client) ApplicationsByDisplayName(ctx context.Context, name string) ([]Application, error) {
	found, err := list[Application](ctx, c, filter("displayName", name), applications)
	if err != nil {
		return nil, fmt.Errorf("looking for the application %q: %w", name, err)
	}
	return found, nil
}

// DeleteApplication deletes an application, its service principal and its
// credentials.
func (c *Client) DeleteApplication(ctx context.Context, objectID string) error {
	if err := c.do(ctx, http.MethodDelete, nil, nil, nil, applications, objectID); err != nil {
		return fmt.Errorf("deleting the application with object id %s: %w", objectID, err)
	}
	return nil
}

// CreateServicePrincipal makes the service principal of an application.
func (c *Client) CreateServicePrincipal(ctx context.Context, appID string) (ServicePrincipal, error) {
	var made ServicePrincipal
	if err := c.do(ctx, http.MethodPost, nil, ServicePrincipal{AppID: appID}, &made, principals); err != nil {
		return ServicePrincipal{}, fmt.Errorf("creating the service principal of %s: %w", appID, err)
	}
	return made, nil
}

// ServicePrincipalByAppID returns the one with a client id, or ErrNotFound.
func (c *Client) ServicePrincipalByAppID(ctx context.Context, appID string) (ServicePrincipal, error) {
	found, err := list[ServicePrincipal](ctx, c, filter("appId", appID), principals)
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return ServicePrincipal{}, fmt.Errorf("looking for the service principal with client id %s: %w", appID, err)
	}
	return found[0], nil
}

// ServicePrincipalsByDisplayName returns all with a name: names are not unique.
func (c *Client) ServicePrincipalsByDisplayName(ctx context.Context, name string) ([]ServicePrincipal, error) {
	found, err := list[ServicePrincipal](ctx, c, filter("displayName", name), principals)
	if err != nil {
		return nil, fmt.Errorf("looking for the service principal %q: %w", name, err)
	}
	return found, nil
}

// DeleteServicePrincipal deletes a service principal.
func (c *Client) DeleteServicePrincipal(ctx context.Context, objectID string) error {
	if err := c.do(ctx, http.MethodDelete, nil, nil, nil, principals, objectID); err != nil {
		return fmt.Errorf("deleting the service principal %s: %w", objectID, err)
	}
	return nil
}

// FederatedIdentityCredentials returns those of the application with an object id.
func (c *Client) FederatedIdentityCredentials(ctx context.Context, objectID string) ([]FederatedIdentityCredential, error) {
	found, err := list[FederatedIdentityCredential](ctx, c, nil, applications, objectID, credentials)
	if err != nil {
		return nil, fmt.Errorf("listing the federated credentials of the application with object id %s: %w", objectID, err)
	}
	return found, nil
}

// CreateFederatedIdentityCredential adds one to the application with an object id.
func (c *Client) CreateFederatedIdentityCredential(ctx context.Context, objectID string, f FederatedIdentityCredential) (FederatedIdentityCredential, error) {
	var made FederatedIdentityCredential
	if err := c.do(ctx, http.MethodPost, nil, f, &made, applications, objectID, credentials); err != nil {
		return FederatedIdentityCredential{}, fmt.Errorf("creating the federated credential %s: %w", f.Name, err)
	}
	return made, nil
}

// UpdateFederatedIdentityCredential changes the one with f.ID to what f says.
func (c *Client) UpdateFederatedIdentityCredential(ctx context.Context, objectID string, f FederatedIdentityCredential) error {
	change := struct { // an empty description replaces another
		Issuer      string   `json:"issuer"`
		Subject     string   `json:"subject"`
		Description string   `json:"description"`
		Audiences   []string `json:"audiences"`
	}{f.Issuer, f.Subject, f.Description, f.Audiences}
	if err := c.do(ctx, http.MethodPatch, nil, change, nil, applications, objectID, credentials, f.ID); err != nil {
		return fmt.Errorf("changing the federated credential %s: %w", f.Name, err)
	}
	return nil
}

// DeleteFederatedIdentityCredential deletes the one with an id or name.
func (c *Client) DeleteFederatedIdentityCredential(ctx context.Context, objectID, id string) error {
	if err := c.do(ctx, http.MethodDelete, nil, nil, nil, applications, objectID, credentials, id); err != nil {
		return fmt.Errorf("deleting the federated credential %s: %w", id, err)
	}
	return nil
}
