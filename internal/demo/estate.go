package demo

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/lanyard-id/lanyard/internal/estate"
)

// On prepares the story for an estate. The owner of its subscription signs in
// with Azure's own SDK, through the proxy that a person on the host uses.
func On(e *estate.Estate, step func(format string, args ...any)) (*Story, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(e.Cloud.CACertPEM()) {
		return nil, errors.New("the cloud's certificate authority does not parse")
	}
	outside := &http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: e.Proxy}),
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}}
	options := policy.ClientOptions{Transport: outside}
	owner, err := azidentity.NewClientSecretCredential(e.Cloud.Tenant.ID, e.Cloud.Operator.ClientID, e.Cloud.OperatorSecret(),
		&azidentity.ClientSecretCredentialOptions{ClientOptions: options})
	if err != nil {
		return nil, err
	}
	principal, err := e.Cloud.Credential(estate.PasswordPrincipal)
	if err != nil {
		return nil, err
	}
	return &Story{
		Kube:      e.Lab.Client,
		Config:    e.Lab.RESTConfig(),
		HTTP:      outside,
		Objects:   e.Objects,
		As:        e.As,
		Principal: principal,
		Azure: Azure{
			SubscriptionID: e.Cloud.SubscriptionID, ResourceGroup: estate.ResourceGroup, Location: estate.Location,
			Credential: owner, Options: &arm.ClientOptions{ClientOptions: options},
		},
		Issuer:             e.Issuer,
		VaultURL:           e.Cloud.VaultURL,
		Secret:             estate.Secret,
		ControllerObjectID: e.Cloud.ControllerPrincipalID(),
		Simulated:          e.Simulated(),
		Step:               step,
	}, nil
}
