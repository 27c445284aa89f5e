package estate

import (
	"fmt"
	"io"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// A Var is one environment variable.
type Var struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// An Env is what points kubectl, az and the SDKs for Go, node and Python at a
// lab or at a cloud. It holds a secret: the file it is kept in is for its
// owner only.
type Env []Var

// CloudEnv returns the variables that point clients at a local cloud: proxy
// is the address of its CONNECT proxy, ca the file of its certificate
// authority, azureConfig a directory for az that keeps the user's own
// settings out of it. The proxy has two spellings: where a shell has both,
// curl and Python obey the small one, and would take the cloud's credentials
// to the real Azure.
func CloudEnv(proxy, ca, azureConfig string) Env {
	url, direct := "http://"+proxy, "127.0.0.1,localhost,"+azure.AddressMetadata
	return Env{
		{"HTTPS_PROXY", url},
		{"https_proxy", url},
		{"NO_PROXY", direct},
		{"no_proxy", direct},
		{"SSL_CERT_FILE", ca},       // Go, OpenSSL
		{"CURL_CA_BUNDLE", ca},      // curl, which asks it before SSL_CERT_FILE
		{"NODE_EXTRA_CA_CERTS", ca}, // node
		{"REQUESTS_CA_BUNDLE", ca},  // Python, az
		{"AZURE_CONFIG_DIR", azureConfig},
		{"AZURE_CORE_COLLECT_TELEMETRY", "no"},
		{"AZURE_STORAGE_AUTH_MODE", "login"}, // az storage: the cloud's accounts have no keys
	}
}

// PrincipalEnv returns the variables by which azidentity's
// EnvironmentCredential acts as an application.
func PrincipalEnv(tenant, subscription, clientID, secret string) Env {
	return Env{
		{"AZURE_TENANT_ID", tenant},
		{"AZURE_SUBSCRIPTION_ID", subscription},
		{"AZURE_CLIENT_ID", clientID},
		{"AZURE_CLIENT_SECRET", secret},
	}
}

// WriteShell writes e as lines that a POSIX shell evaluates. PATH is put in
// front of what it was.
func (e Env) WriteShell(w io.Writer) error {
	for _, v := range e {
		value := Quote(v.Value)
		if v.Name == "PATH" {
			value += `":$PATH"`
		}
		if _, err := fmt.Fprintf(w, "export %s=%s\n", v.Name, value); err != nil {
			return err
		}
	}
	return nil
}

// Quote quotes a word for a POSIX shell.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
