package arm

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// Methods of a Login, as --auth-method has them. The first three are azwi's.
const (
	MethodCLI               = "cli"                // the session of az login
	MethodClientSecret      = "client_secret"      // an application with a secret
	MethodClientCertificate = "client_certificate" // an application with a certificate
	MethodWorkloadIdentity  = "workload_identity"  // a projected token, as the webhook sets it up
	MethodManagedIdentity   = "managed_identity"   // the machine's identity
	MethodEnvironment       = "environment"        // what AZURE_CLIENT_SECRET and its like say
)

// Methods are all methods, the default first.
func Methods() []string {
	return []string{MethodCLI, MethodClientSecret, MethodClientCertificate, MethodWorkloadIdentity, MethodManagedIdentity, MethodEnvironment}
}

// A Login says as whom to sign in.
type Login struct {
	Method         string // one of Methods; empty means MethodCLI
	TenantID       string
	ClientID       string // of an application or identity; empty means the system-assigned one with MethodManagedIdentity
	ClientSecret   string
	Certificate    string // file: PEM, DER or PKCS #12, with or without its key
	PrivateKey     string // file: PEM; empty if Certificate has the key
	TokenFile      string // MethodWorkloadIdentity; empty means what AZURE_FEDERATED_TOKEN_FILE names
	SubscriptionID string // MethodCLI: of the account to use; empty means az's current one
}

// LogValue hides the secret.
func (l Login) LogValue() slog.Value {
	return slog.GroupValue(slog.String("method", l.Method), slog.String("tenantID", l.TenantID), slog.String("clientID", l.ClientID))
}

// String hides the secret.
func (l Login) String() string { return l.LogValue().String() }

// Check says what is missing, in terms of azwi's flags.
func (l Login) Check() error {
	need := func(flag, value string) error {
		if value == "" {
			return fmt.Errorf("--%s is required", flag)
		}
		return nil
	}
	switch l.Method {
	case "", MethodCLI, MethodManagedIdentity, MethodWorkloadIdentity, MethodEnvironment:
		return nil
	case MethodClientSecret:
		return errors.Join(need("client-id", l.ClientID), need("client-secret", l.ClientSecret))
	case MethodClientCertificate:
		return errors.Join(need("client-id", l.ClientID), need("certificate-path", l.Certificate))
	}
	return fmt.Errorf("unknown authentication method %q: there are %s", l.Method, strings.Join(Methods(), ", "))
}

// Credential makes the credential; base carries transport and retries. It sends
// nothing yet, and its errors quote no secret.
func (l Login) Credential(c Cloud, base policy.ClientOptions) (azcore.TokenCredential, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	base.Cloud = c.Configuration()
	cred, err := l.credential(c, base)
	if err != nil {
		return nil, fmt.Errorf("making the credential for Azure: %w", err)
	}
	return cred, nil
}

func (l Login) credential(c Cloud, base policy.ClientOptions) (azcore.TokenCredential, error) {
	switch l.Method {
	case MethodClientSecret:
		return azidentity.NewClientSecretCredential(l.TenantID, l.ClientID, l.ClientSecret,
			&azidentity.ClientSecretCredentialOptions{ClientOptions: base, DisableInstanceDiscovery: c.Custom})
	case MethodClientCertificate:
		certs, key, err := readCertificate(l.Certificate, l.PrivateKey)
		if err != nil {
			return nil, err
		}
		return azidentity.NewClientCertificateCredential(l.TenantID, l.ClientID, certs, key,
			&azidentity.ClientCertificateCredentialOptions{ClientOptions: base, DisableInstanceDiscovery: c.Custom})
	case MethodWorkloadIdentity:
		return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: base, ClientID: l.ClientID, TenantID: l.TenantID, TokenFilePath: l.TokenFile, DisableInstanceDiscovery: c.Custom,
		})
	case MethodManagedIdentity:
		o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: base}
		if l.ClientID != "" {
			o.ID = azidentity.ClientID(l.ClientID)
		}
		return azidentity.NewManagedIdentityCredential(o)
	case MethodEnvironment:
		return azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: base, DisableInstanceDiscovery: c.Custom})
	default:
		o := &azidentity.AzureCLICredentialOptions{Subscription: l.SubscriptionID}
		if l.SubscriptionID == "" {
			o.TenantID = l.TenantID // az refuses both
		}
		return azidentity.NewAzureCLICredential(o)
	}
}

func readCertificate(certificate, key string) ([]*x509.Certificate, any, error) {
	data, err := os.ReadFile(certificate)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the certificate: %w", err)
	}
	if parsed, err := x509.ParseCertificate(data); err == nil {
		data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: parsed.Raw})
	}
	if key != "" {
		text, err := os.ReadFile(key)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the private key: %w", err)
		}
		data = slices.Concat(bytes.TrimSpace(data), []byte("\n"), text)
	}
	certs, private, err := azidentity.ParseCertificates(data, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: a certificate and its private key are needed, as PEM or PKCS #12 without a password; the key may be a file of its own: %w", certificate, err)
	}
	return certs, private, nil
}
