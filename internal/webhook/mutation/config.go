package mutation

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// A Layout says where the token is in a container.
type Layout string

const (
	// LayoutV16 is the layout of v1.6: a reserved volume per pod name, with
	// the token in a directory of its own.
	LayoutV16 Layout = "v1.6"

	// LayoutLegacy is the layout before v1.6, which AKS still uses.
	LayoutLegacy Layout = "legacy"
)

// A Config says what every mutated pod gets.
type Config struct {
	TenantID      string // AZURE_TENANT_ID, unless the service account has its own
	AuthorityHost string // AZURE_AUTHORITY_HOST, with its trailing slash
	Audience      string // of the projected token; empty means api://AzureADTokenExchange
	Layout        Layout // empty means LayoutV16

	Endpoint TokenEndpoint // the zero value means none
	Proxy    Proxy

	// NativeSidecars says that the proxy is an init container that restarts,
	// which Kubernetes knows from 1.NativeSidecarMinor on as v1.6 sees it.
	NativeSidecars bool
}

// A Proxy says what the token proxy's containers are made of.
type Proxy struct {
	Image, InitImage string
	LogLevel         string          // as v1.6 spells levels
	Resources        json.RawMessage // of both containers; nil means none, as in v1.6
}

// Validate reports what an administrator has to change.
func (c Config) Validate() error {
	var errs []error
	switch {
	case c.TenantID == "":
		errs = append(errs, errors.New("no tenant: set AZURE_TENANT_ID to the id of the Entra tenant"))
	case strings.ContainsAny(c.TenantID, "${}<> \t\r\n/"):
		errs = append(errs, fmt.Errorf("AZURE_TENANT_ID is %q, which is not a tenant: replace the placeholder by the id of the Entra tenant", c.TenantID))
	}
	if u, err := url.Parse(c.AuthorityHost); err != nil || u.Scheme != "https" || u.Host == "" {
		errs = append(errs, fmt.Errorf("authority host %q is not an https URL, such as https://login.microsoftonline.com/", c.AuthorityHost))
	}
	switch c.Layout {
	case "", LayoutV16, LayoutLegacy:
	default:
		errs = append(errs, fmt.Errorf("token layout %q is unknown: use %q or %q", c.Layout, LayoutV16, LayoutLegacy))
	}
	if c.Proxy.Image == "" || c.Proxy.InitImage == "" {
		errs = append(errs, errors.New("no image of the token proxy: set PROXY_IMAGE and PROXY_INIT_IMAGE"))
	}
	errs = append(errs, c.Endpoint.validate())
	return errors.Join(errs...)
}

// of returns the settings for one pod: the custom token endpoint has an
// audience of its own, and its CA has a place in the layout of v1.6 only.
func (c Config) of(pod Pod) Config {
	if !c.Endpoint.asked(pod) {
		c.Endpoint = TokenEndpoint{Suffix: c.Endpoint.Suffix}
		return c
	}
	c.Audience, c.Layout = c.Endpoint.Audience, LayoutV16
	return c
}

// AuthorityHost returns the login endpoint of an Azure environment. Names are
// those of go-autorest, in any case; empty means the public cloud.
func AuthorityHost(environment string) (string, error) {
	switch strings.ToUpper(environment) {
	case "", "AZUREPUBLICCLOUD", "AZURECLOUD":
		return "https://login.microsoftonline.com/", nil
	case "AZUREUSGOVERNMENT", "AZUREUSGOVERNMENTCLOUD":
		return "https://login.microsoftonline.us/", nil
	case "AZURECHINACLOUD":
		return "https://login.chinacloudapi.cn/", nil
	case "AZUREGERMANCLOUD":
		return "https://login.microsoftonline.de/", nil
	}
	return "", fmt.Errorf("AZURE_ENVIRONMENT %q is unknown: use AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud or AzureGermanCloud, or name the endpoint with --authority-host", environment)
}

func (c Config) audience() string {
	if c.Audience == "" {
		return workloadidentity.Audience
	}
	return c.Audience
}

func (c Config) legacy() bool { return c.Layout == LayoutLegacy }

func (c Config) mountPath() string {
	if c.legacy() {
		return workloadidentity.LegacyMountPath
	}
	return workloadidentity.MountPath
}

// tokenPath is the token's file, relative to the mount.
func (c Config) tokenPath() string {
	if c.legacy() {
		return workloadidentity.LegacyTokenPath
	}
	return workloadidentity.TokenPath
}

// tokenFile is the token's file in a container.
func (c Config) tokenFile() string { return path.Join(c.mountPath(), c.tokenPath()) }

func fileOf(l Layout) string { return Config{Layout: l}.tokenFile() }
