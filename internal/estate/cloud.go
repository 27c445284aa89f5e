package estate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/registration"
)

// What the estate's subscription holds, with the names of the mission's
// documents where they have one.
const (
	ResourceGroup     = "myResourceGroup"
	Location          = "eastus"
	PodIdentity       = "vpl-id"            // for pods with the label aadpodidbinding
	WorkloadIdentity  = "saman-cluster-poc" // for a service account
	Vault             = "lanyard-demo"
	Secret            = "greeting"
	PasswordPrincipal = "saman-sp"    // an application with a password
	CertPrincipal     = "saman-cert"  // an application with a certificate
	StorageAccount    = "lanyardoidc" // for an issuer's documents; its containers can be opened to everybody
	FederatedApp      = "orders-app"  // an application whose federated credentials the cluster's principal may write
	clusterPrincipal  = "aks-cluster" // mic acts as it
	scaleSet          = "aks-nodepool1-vmss"
	nodeResourceGroup = ResourceGroup
	nodeName          = "aks-nodepool1-vmss000000"
)

// StateVariable names the state directory of the cloud for its owner's
// commands: lanyard cloud fault, clock, log and settings.
const StateVariable = "LANYARD_CLOUD_STATE"

// A CloudConfig describes an estate's cloud. StateDir must be set.
type CloudConfig struct {
	StateDir string                  // absolute; survives a restart
	Hosts    map[string]http.Handler // further hosts
	Settings control.Settings        // the zero value is quick
	Logger   *slog.Logger            // nil means slog.Default
}

// A Cloud is a local Azure with a subscription in it.
type Cloud struct {
	*cloud.Cloud
	cloud.Seeded
	VaultURL  string
	MachineID string // ARM id of the scale set's instance that the node is

	stateDir string
	secrets  map[string]string // passwords, or certificates with keys, of applications by name
}

// A Credential is what an application proves itself with.
type Credential struct {
	TenantID, ClientID, PrincipalID string

	Password cloud.Secret // empty if it has a certificate
	PEM      cloud.Secret // certificate and key; empty if it has a password
}

// PKCS12 is the certificate and its key in the form of Pod Identity's
// Secrets, encrypted with password.
func (c Credential) PKCS12(password string) ([]byte, error) {
	return registration.PKCS12(c.PEM, password)
}

// OpenCloud opens the cloud in a state directory and makes sure that its
// subscription holds what an estate needs.
func OpenCloud(ctx context.Context, c CloudConfig) (*Cloud, error) {
	opened, err := cloud.Open(cloud.Config{StateDir: c.StateDir, Hosts: c.Hosts, Control: true, Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	e := &Cloud{Cloud: opened, stateDir: c.StateDir}
	if err := e.seed(ctx); err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	opened.SetSettings(c.Settings) // what is seeded is there at once
	return e, nil
}

func (c *Cloud) seed(ctx context.Context) error {
	vault := "providers/Microsoft.KeyVault/vaults/" + Vault
	identity := "providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + PodIdentity
	var err error
	c.Seeded, err = c.Seed(ctx, cloud.Seed{
		ResourceGroup: ResourceGroup,
		Location:      Location,
		Identities:    []cloud.SeedIdentity{{Name: PodIdentity}, {Name: WorkloadIdentity}},
		ScaleSets:     []cloud.SeedScaleSet{{Name: scaleSet, Instances: 1}},
		Vaults:        []cloud.SeedVault{{Name: Vault, Secrets: map[string]string{Secret: "hello from the vault"}}},
		Accounts:      []cloud.SeedAccount{{Name: StorageAccount, Public: true}},
		Applications: []cloud.SeedApplication{
			// It reads the directory and changes what it owns in it.
			{Name: clusterPrincipal, Permissions: []string{azure.PermissionApplicationReadWriteOwnedBy}},
			{Name: PasswordPrincipal}, {Name: CertPrincipal, Certificate: true},
			{Name: FederatedApp, Owners: []string{clusterPrincipal}},
		},
		Roles: []cloud.SeedRole{
			{To: PodIdentity, Role: azure.RoleKeyVaultSecretsUser, On: vault},
			{To: WorkloadIdentity, Role: azure.RoleKeyVaultSecretsUser, On: vault},
			{To: PasswordPrincipal, Role: azure.RoleKeyVaultSecretsUser, On: vault},
			{To: CertPrincipal, Role: azure.RoleKeyVaultSecretsUser, On: vault},
			// The chain of trust of document 001: the cluster's principal may change its machines and
			// hand out this identity, and no other.
			{To: clusterPrincipal, Role: azure.RoleVirtualMachineContributor, On: "providers/" + azure.TypeVirtualMachineScaleSet + "/" + scaleSet},
			{To: clusterPrincipal, Role: azure.RoleManagedIdentityOperator, On: identity},
			// It may also make and remove federated credentials of the group's identities.
			{To: clusterPrincipal, Role: azure.RoleManagedIdentityContributor},
			{To: FederatedApp, Role: azure.RoleKeyVaultSecretsUser, On: vault},
		},
	})
	if err != nil {
		return err
	}
	c.VaultURL = c.Vaults[Vault]
	c.MachineID = c.ScaleSets[scaleSet] + "/virtualMachines/0"
	made := map[string]cloud.Principal{cloud.OperatorName: c.Operator}
	maps.Copy(made, c.Applications)
	return c.keepSecrets(made)
}

// keepSecrets remembers the secrets of applications, which the cloud tells
// only once.
func (c *Cloud) keepSecrets(made map[string]cloud.Principal) error {
	file := filepath.Join(c.stateDir, "secrets.json")
	if c.secrets == nil {
		c.secrets = map[string]string{}
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, &c.secrets)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reading the secrets of the cloud's applications: %w", err)
		}
	}
	for name, p := range made {
		if p.Secret != "" {
			c.secrets[name] = string(p.Secret)
		}
		if c.secrets[name] == "" {
			return fmt.Errorf("the secret of %s is lost: it was in %s, and the cloud tells it only once; remove %s to start anew", name, file, filepath.Dir(file))
		}
	}
	text, err := json.Marshal(c.secrets)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Credential is what an application of the seed (PasswordPrincipal,
// CertPrincipal) or one of EnsureApplication proves itself with.
func (c *Cloud) Credential(name string) (Credential, error) {
	p, known := c.Applications[name]
	if !known {
		return Credential{}, fmt.Errorf("the estate has no application %q", name)
	}
	made := Credential{TenantID: c.Tenant.ID, ClientID: p.ClientID, PrincipalID: p.PrincipalID}
	if secret := cloud.Secret(c.secrets[name]); strings.HasPrefix(string(secret), "-----BEGIN ") {
		made.PEM = secret
	} else {
		made.Password = secret
	}
	return made, nil
}

// EnsureApplication makes an application with a password, or with a
// certificate, that may read the secrets of the estate's vault. Doing it again
// changes nothing and returns the same. Not for concurrent use.
func (c *Cloud) EnsureApplication(ctx context.Context, name string, certificate bool) (Credential, error) {
	seeded, err := c.Seed(ctx, cloud.Seed{
		ResourceGroup: ResourceGroup, Location: Location, SubscriptionID: c.SubscriptionID,
		Applications: []cloud.SeedApplication{{Name: name, Certificate: certificate}},
		Roles:        []cloud.SeedRole{{To: name, Role: azure.RoleKeyVaultSecretsUser, On: "providers/Microsoft.KeyVault/vaults/" + Vault}},
	})
	if err != nil {
		return Credential{}, err
	}
	c.Applications[name] = seeded.Applications[name]
	if err := c.keepSecrets(map[string]cloud.Principal{name: seeded.Applications[name]}); err != nil {
		return Credential{}, err
	}
	return c.Credential(name)
}

// Hosts are the names under which pods ask for the cloud.
func (c *Cloud) Hosts() []string {
	return append(azure.LoginHosts(), azure.HostManagement, azure.HostManagementClassic, azure.HostGraph, "*."+azure.SuffixVault, "*."+azure.SuffixBlob)
}

// Files writes what clients need into dir and returns the variables that
// point them at the cloud, through the proxy at that address, as the owner of
// the subscription.
func (c *Cloud) Files(dir string, proxy net.Addr) (Env, error) {
	ca, azureConfig := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "azure")
	if err := os.WriteFile(ca, c.CACertPEM(), 0o600); err != nil {
		return nil, fmt.Errorf("writing the certificate authority: %w", err)
	}
	if err := os.MkdirAll(azureConfig, 0o700); err != nil {
		return nil, fmt.Errorf("making a directory for az: %w", err)
	}
	env := append(CloudEnv(proxy.String(), ca, azureConfig), Var{StateVariable, c.stateDir})
	return append(env,
		PrincipalEnv(c.Tenant.ID, c.SubscriptionID, c.Operator.ClientID, c.secrets[cloud.OperatorName])...), nil
}

// adminSecret is what v1's Secret aadpodidentity-admin-secret holds: the
// principal that mic acts as.
func (c *Cloud) adminSecret() map[string]string {
	p := c.Applications[clusterPrincipal]
	return map[string]string{
		"Cloud": "AzurePublicCloud", "TenantID": c.Tenant.ID, "SubscriptionID": c.SubscriptionID, "ResourceGroup": ResourceGroup,
		"VMType": "vmss", "ClientID": p.ClientID, "ClientSecret": c.secrets[clusterPrincipal],
	}
}

// ControllerPrincipalID is the object id of the principal that mic acts as.
func (c *Cloud) ControllerPrincipalID() string { return c.Applications[clusterPrincipal].PrincipalID }

// OperatorSecret is the client secret of the subscription's owner.
func (c *Cloud) OperatorSecret() string { return c.secrets[cloud.OperatorName] }
