package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/federated"
)

// as is as whom and where the controller acts.
type as struct {
	cloud arm.Cloud
	login arm.Login
}

// account reads it: an azure.json, or mic's environment, or workload identity's.
// Errors never quote a secret.
func (s settings) account() (as, error) {
	var a struct {
		Cloud        string `json:"cloud"`
		TenantID     string `json:"tenantId"`
		ClientID     string `json:"aadClientId"`
		ClientSecret string `json:"aadClientSecret"`
		UseMSI       bool   `json:"useManagedIdentityExtension"`
		MSIClientID  string `json:"userAssignedIdentityID"`
	}
	if s.cloudConfig != "" {
		data, err := os.ReadFile(s.cloudConfig)
		if err != nil {
			return as{}, fmt.Errorf("reading --cloudconfig: %w", err)
		}
		if err := json.Unmarshal(data, &a); err != nil {
			return as{}, errors.New("--cloudconfig is not JSON with the fields of azure.json")
		}
	} else {
		a.Cloud = cmp.Or(s.getenv("CLOUD"), s.getenv("AZURE_ENVIRONMENT"))
		a.TenantID = cmp.Or(s.getenv("TENANT_ID"), s.getenv("AZURE_TENANT_ID"))
		a.ClientID, a.ClientSecret, a.MSIClientID = s.getenv("CLIENT_ID"), s.getenv("CLIENT_SECRET"), s.getenv("USER_ASSIGNED_MSI_CLIENT_ID")
		if text := s.getenv("USE_MSI"); text != "" {
			use, err := strconv.ParseBool(text)
			if err != nil {
				return as{}, fmt.Errorf("USE_MSI=%q: write true or false", text)
			}
			a.UseMSI = use
		}
	}
	cloud, err := arm.Find(a.Cloud, s.getenv)
	if err != nil {
		return as{}, err
	}
	l := arm.Login{TenantID: a.TenantID}
	switch {
	case a.UseMSI || strings.EqualFold(a.ClientID, "msi"): // azure.json of clusters with a managed identity says msi
		l.Method, l.ClientID = arm.MethodManagedIdentity, a.MSIClientID
	case a.TenantID != "" && a.ClientID != "" && a.ClientSecret != "":
		l.Method, l.ClientID, l.ClientSecret = arm.MethodClientSecret, a.ClientID, a.ClientSecret
	case s.cloudConfig == "" && a.ClientSecret == "" && s.getenv("AZURE_FEDERATED_TOKEN_FILE") != "":
		l.Method, l.ClientID = arm.MethodWorkloadIdentity, cmp.Or(a.ClientID, s.getenv("AZURE_CLIENT_ID"))
		l.TokenFile = s.getenv("AZURE_FEDERATED_TOKEN_FILE")
	default:
		return as{}, errors.New("no credential for Azure: set TENANT_ID, CLIENT_ID and CLIENT_SECRET, or USE_MSI=true with USER_ASSIGNED_MSI_CLIENT_ID, or --cloudconfig, or annotate the service account with azure.workload.identity/client-id and label the pod azure.workload.identity/use=true")
	}
	return as{cloud, l}, nil
}

// audience is what tokens for Entra's exchange are for in a cloud.
func audience(cloud string) string {
	switch cloud {
	case arm.Government:
		return federated.Audience + "USGov"
	case arm.China:
		return federated.Audience + "China"
	}
	return federated.Audience
}

// checkInterval is how long a file that was looked at is not looked at again.
const checkInterval = time.Second

// account is Azure as whom a file says now: a changed azure.json is in force for
// the next request, and one that cannot be used changes nothing.
type account struct {
	load   func() (as, error)
	file   string // empty: it never changes
	logger *slog.Logger

	mu     sync.Mutex
	client *federated.Client
	digest [sha256.Size]byte
	looked time.Time
}

// open reads it for the first time.
func (a *account) open() (as, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.digest, a.looked = a.read(), time.Now()
	return a.renew()
}

func (a *account) read() [sha256.Size]byte {
	if a.file == "" {
		return [sha256.Size]byte{}
	}
	data, err := os.ReadFile(a.file)
	return sha256.Sum256(fmt.Appendf(data, "%v", err))
}

func (a *account) renew() (as, error) {
	who, err := a.load()
	if err != nil {
		return who, err
	}
	options := who.cloud.Options("lanyard-federation")
	// The controller has its own back-off and other identities to look after.
	options.Retry = policy.RetryOptions{MaxRetries: 1, RetryDelay: 200 * time.Millisecond, TryTimeout: time.Minute}
	cred, err := who.login.Credential(who.cloud, options)
	if err != nil {
		return who, err
	}
	a.client = &federated.Client{Credential: cred, Cloud: who.cloud, Options: options}
	return who, nil
}

func (a *account) now() *federated.Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); a.file != "" && now.Sub(a.looked) >= checkInterval {
		a.looked = now
		if digest := a.read(); digest != a.digest {
			a.digest = digest
			if _, err := a.renew(); err != nil {
				a.logger.Error("the changed cloud configuration cannot be used: the former one stays in force", "file", a.file, "err", err)
			} else {
				a.logger.Info("the changed cloud configuration is in force", "file", a.file)
			}
		}
	}
	return a.client
}

// Find implements federation.Azure.
func (a *account) Find(ctx context.Context, clientID string) (federated.Parent, error) {
	return a.now().Find(ctx, clientID)
}

// FindResource implements federation.Azure.
func (a *account) FindResource(ctx context.Context, resourceID string) (federated.Parent, error) {
	return a.now().FindResource(ctx, resourceID)
}

// List implements federation.Azure.
func (a *account) List(ctx context.Context, p federated.Parent) ([]federated.Credential, error) {
	return a.now().List(ctx, p)
}

// PutListed implements federation.Azure.
func (a *account) PutListed(ctx context.Context, p federated.Parent, listed []federated.Credential, want federated.Credential) error {
	return a.now().PutListed(ctx, p, listed, want)
}

// Delete implements federation.Azure.
func (a *account) Delete(ctx context.Context, p federated.Parent, name string) (bool, error) {
	return a.now().Delete(ctx, p, name)
}
