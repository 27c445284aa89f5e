package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/authorization/armauthorization/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/msi/armmsi"
	"github.com/google/uuid"
)

// An Azure is the subscription that the story plays in, seen by the person
// who owns it: everything goes through Azure's own management SDK.
type Azure struct {
	SubscriptionID string
	ResourceGroup  string
	Location       string
	Credential     azcore.TokenCredential
	Options        *arm.ClientOptions
}

// An Identity is a user-assigned managed identity.
type Identity struct {
	Name        string
	ResourceID  string
	ClientID    string
	PrincipalID string
}

// Identity reads the identity name.
func (a Azure) Identity(ctx context.Context, name string) (Identity, error) {
	c, err := armmsi.NewUserAssignedIdentitiesClient(a.SubscriptionID, a.Credential, a.Options)
	if err != nil {
		return Identity{}, err
	}
	r, err := c.Get(ctx, a.ResourceGroup, name, nil)
	if err != nil {
		return Identity{}, fmt.Errorf("reading the managed identity %s: %w", name, err)
	}
	return identity(r.Identity), nil
}

// CreateIdentity creates the identity name, or reads it if it exists.
func (a Azure) CreateIdentity(ctx context.Context, name string) (Identity, error) {
	c, err := armmsi.NewUserAssignedIdentitiesClient(a.SubscriptionID, a.Credential, a.Options)
	if err != nil {
		return Identity{}, err
	}
	r, err := c.CreateOrUpdate(ctx, a.ResourceGroup, name, armmsi.Identity{Location: to.Ptr(a.Location)}, nil)
	if err != nil {
		return Identity{}, fmt.Errorf("creating the managed identity %s: %w", name, err)
	}
	return identity(r.Identity), nil
}

func identity(i armmsi.Identity) Identity {
	return Identity{Name: *i.Name, ResourceID: *i.ID, ClientID: *i.Properties.ClientID, PrincipalID: *i.Properties.PrincipalID}
}

// Federate lets the Kubernetes service account subject of the cluster issuer
// act as the identity.
func (a Azure) Federate(ctx context.Context, identity, name, issuer, subject string) error {
	c, err := armmsi.NewFederatedIdentityCredentialsClient(a.SubscriptionID, a.Credential, a.Options)
	if err != nil {
		return err
	}
	_, err = c.CreateOrUpdate(ctx, a.ResourceGroup, identity, name, armmsi.FederatedIdentityCredential{
		Properties: &armmsi.FederatedIdentityCredentialProperties{
			Issuer:    to.Ptr(issuer),
			Subject:   to.Ptr(subject),
			Audiences: []*string{to.Ptr("api://AzureADTokenExchange")},
		},
	}, nil)
	if err != nil {
		return fmt.Errorf("creating the federated credential %s: %w", name, err)
	}
	return nil
}

// Assign grants role (a role definition's GUID) on scope to a principal. An
// assignment that exists is left alone.
func (a Azure) Assign(ctx context.Context, scope, role, principalID string) error {
	c, err := armauthorization.NewRoleAssignmentsClient(a.SubscriptionID, a.Credential, a.Options)
	if err != nil {
		return err
	}
	name := uuid.NewHash(sha256.New(), uuid.NameSpaceURL, []byte(scope+role+principalID), 5).String()
	_, err = c.Create(ctx, scope, name, armauthorization.RoleAssignmentCreateParameters{
		Properties: &armauthorization.RoleAssignmentProperties{
			PrincipalID:      to.Ptr(principalID),
			PrincipalType:    to.Ptr(armauthorization.PrincipalTypeServicePrincipal),
			RoleDefinitionID: to.Ptr("/subscriptions/" + a.SubscriptionID + "/providers/Microsoft.Authorization/roleDefinitions/" + role),
		},
	}, nil)
	var response *azcore.ResponseError
	if errors.As(err, &response) && response.StatusCode == http.StatusConflict {
		return nil
	}
	if err != nil {
		return fmt.Errorf("assigning the role %s on %s: %w", role, scope, err)
	}
	return nil
}
