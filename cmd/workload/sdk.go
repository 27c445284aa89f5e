package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
)

// sdk does what the Azure SDK's first example does.
func sdk(ctx context.Context, o options, r *report) error {
	r.Door = "2 Entra direct"
	scopes := policy.TokenRequestOptions{Scopes: []string{o.Resource + "/.default"}}
	var credential *azidentity.DefaultAzureCredential
	token, err := attempt(ctx, o, func(ctx context.Context) (string, error) {
		var err error
		// A program that is started again reads its environment again.
		if credential, err = azidentity.NewDefaultAzureCredential(nil); err != nil {
			return "", err
		}
		t, err := credential.GetToken(ctx, scopes)
		return t.Token, refused("Entra", err)
	})
	if err != nil {
		return err
	}
	r.first(token)
	again := time.Now()
	if _, err := credential.GetToken(ctx, scopes); err != nil {
		return fmt.Errorf("asking a second time: %w", refused("Entra", err))
	}
	r.SecondTokenMillis = millis(time.Since(again))

	client, err := azsecrets.NewClient(o.Vault, credential, nil)
	if err != nil {
		return err
	}
	secret, err := client.GetSecret(ctx, o.Secret, "", nil)
	if err != nil {
		return refused("the vault", err)
	}
	if secret.Value == nil {
		return errors.New("the vault's answer holds no secret")
	}
	r.read(*secret.Value, o.Print)
	return nil
}

// refused finds the status in an error of the SDK.
func refused(who string, err error) error {
	var response *http.Response
	var auth *azidentity.AuthenticationFailedError
	var service *azcore.ResponseError
	switch {
	case errors.As(err, &auth):
		response = auth.RawResponse
	case errors.As(err, &service):
		response = service.RawResponse
	}
	if response == nil {
		return err
	}
	return &refusal{who, response.StatusCode, err.Error()}
}
