package estate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud"
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
	clusterPrincipal  = "aks-cluster" // mic acts as it
	scaleSet          = "aks-nodepool1-vmss"
	nodeResourceGroup = ResourceGroup
	nodeName          = "aks-nodepool1-vmss000000"
)

// A CloudConfig describes an estate's cloud. StateDir must be set.
type CloudConfig struct {
	StateDir string                  // absolute; survives a restart
	Hosts    map[string]http.Handler // further hosts
	Logger   *slog.Logger            // nil means slog.Default
}

// A Cloud is a local Azure with a subscription in it.
type Cloud struct {
	*cloud.Cloud
	cloud.Seeded
	VaultURL  string
	MachineID string // ARM id of the scale set's instance that the node is

	secrets map[string]string // of applications, by name
}

// OpenCloud opens the cloud in a state directory and makes sure that its
// subscription holds what an estate needs.
func OpenCloud(ctx context.Context, c CloudConfig) (*Cloud, error) {
	opened, err := cloud.Open(cloud.Config{StateDir: c.StateDir, Hosts: c.Hosts, Logger: c.Logger})
	if err != nil {
		return nil, err
	}
	e := &Cloud{Cloud: opened}
	if err := e.seed(ctx, c.StateDir); err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	return e, nil
}

func (c *Cloud) seed(ctx context.Context, stateDir string) error {
	vault := "providers/Microsoft.KeyVault/vaults/" + Vault
	identity := "providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + PodIdentity
	var err error
	c.Seeded, err = c.Seed(ctx, cloud.Seed{
		ResourceGroup: ResourceGroup,
		Location:      Location,
		Identities:    []cloud.SeedIdentity{{Name: PodIdentity}, {Name: WorkloadIdentity}},
		ScaleSets:     []cloud.SeedScaleSet{{Name: scaleSet, Instances: 1}},
		Vaults:        []cloud.SeedVault{{Name: Vault, Secrets: map[string]string{Secret: "hello from the vault"}}},
		Applications:  []cloud.SeedApplication{{Name: clusterPrincipal}},
		Roles: []cloud.SeedRole{
			{To: PodIdentity, Role: azure.RoleKeyVaultSecretsUser, On: vault},
			{To: WorkloadIdentity, Role: azure.RoleKeyVaultSecretsUser, On: vault},
			// The chain of trust of document 001: the cluster's principal may change its machines and
			// hand out this identity, and no other.
			{To: clusterPrincipal, Role: azure.RoleVirtualMachineContributor, On: "providers/" + azure.TypeVirtualMachineScaleSet + "/" + scaleSet},
			{To: clusterPrincipal, Role: azure.RoleManagedIdentityOperator, On: identity},
		},
	})
	if err != nil {
		return err
	}
	c.VaultURL = c.Vaults[Vault]
	c.MachineID = c.ScaleSets[scaleSet] + "/virtualMachines/0"
	return c.keepSecrets(filepath.Join(stateDir, "secrets.json"))
}

// keepSecrets remembers the secrets of applications, which the cloud tells
// only once.
func (c *Cloud) keepSecrets(file string) error {
	c.secrets = map[string]string{}
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &c.secrets)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the secrets of the cloud's applications: %w", err)
	}
	for name, p := range map[string]cloud.Principal{cloud.OperatorName: c.Operator, clusterPrincipal: c.Applications[clusterPrincipal]} {
		if p.Secret != "" {
			c.secrets[name] = string(p.Secret)
		}
		if c.secrets[name] == "" {
			return fmt.Errorf("the secret of %s is lost: it was in %s, and the cloud tells it only once; remove %s to start anew", name, file, filepath.Dir(file))
		}
	}
	if text, err = json.Marshal(c.secrets); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// Hosts are the names under which pods ask for the cloud.
func (c *Cloud) Hosts() []string {
	return append(azure.LoginHosts(), azure.HostManagement, azure.HostManagementClassic, azure.HostGraph, "*."+azure.SuffixVault)
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
	return append(CloudEnv(proxy.String(), ca, azureConfig),
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
