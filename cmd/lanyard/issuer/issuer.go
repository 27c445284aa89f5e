// Package issuer is "lanyard issuer" and "lanyard jwks": flags, help and output
// for what internal/issuer does.
package issuer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/issuer/inspect"
)

// Command returns "issuer"; self is how people call this program.
func Command(self string) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:   "issuer",
		Short: "Publish, check and rotate the keys of a cluster's token issuer",
		Long: `A cluster that AKS does not manage is its own issuer of service-account tokens.
Entra must be able to read two small public documents at the issuer's URL: the
discovery document and the public keys. These commands publish them, check them
as Entra sees them, and replace the keys without an interruption.`,
		Example: examples(self, `  lanyard issuer check                                                     what does Entra see?
  lanyard issuer publish --to https://ACCOUNT.blob.core.windows.net/oidc   put it there
  lanyard issuer rotate --key-dir /etc/kubernetes/pki --dry-run            replace the key: how and when`),
	}, publishCommand(self), serveCommand(self), checkCommand(self), rotateCommand(self))
}

// examples names the program as it was called.
func examples(self, text string) string { return strings.ReplaceAll(text, "lanyard ", self+" ") }

// A source are the flags that say where documents come from.
type source struct {
	cli.Cluster
	account string
	servers []string

	issuer string
	files  []string
}

func (s *source) addCluster(cmd *cobra.Command) {
	s.Add(cmd, "`namespace` of the service account of --service-account")
	cmd.Flags().StringVar(&s.account, "service-account", "default", "`name` of a service account for which tokens are asked, to see which key signs; they are forgotten at once and nobody accepts them")
	cmd.Flags().StringSliceVar(&s.servers, "api-server", nil, "`URL` of an API server, repeatable: all of them, where the endpoints of the Service kubernetes cannot be reached from here")
}

func (s *source) addFiles(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.issuer, "issuer", "", "`URL` of the issuer (default: as the API servers say)")
	cmd.Flags().StringSliceVar(&s.files, "public-keys", nil, "PEM `files` of the keys, instead of asking a cluster")
	_ = cmd.MarkFlagFilename("public-keys") // fails only for a flag that does not exist
}

func (s *source) cluster() (*issuer.Cluster, error) {
	config, namespace, err := s.Config()
	if err != nil {
		return nil, err
	}
	return &issuer.Cluster{Config: config, Servers: s.servers, Account: namespace + "/" + s.account}, nil
}

// documents returns where the documents come from.
func (s *source) documents() (issuer.Source, error) {
	if len(s.files) > 0 {
		if s.issuer == "" {
			return nil, cli.Usage("key files do not name their issuer: give its URL with --issuer")
		}
		return issuer.Files{Issuer: s.issuer, Names: s.files}, nil
	}
	c, err := s.cluster()
	if err != nil {
		return nil, err
	}
	if s.issuer == "" {
		return c, nil
	}
	return expected{c, s.issuer}, nil
}

// expected is a source whose issuer must be the one that was named.
type expected struct {
	issuer.Source
	issuer string
}

// Documents returns the source's, if they are of that issuer.
func (e expected) Documents(ctx context.Context) (issuer.Documents, bool, error) {
	d, complete, err := e.Source.Documents(ctx)
	if err == nil && d.Issuer != e.issuer {
		err = fmt.Errorf("the API servers say that they are the issuer %q, not %q: they are compared byte for byte, a slash at the end included; set --service-account-issuer", d.Issuer, e.issuer)
	}
	return d, complete, err
}

// target is the place that --to names; azure says as whom to write to blob
// storage.
func target(azure *cli.Azure, to string) (issuer.Target, error) {
	if !strings.Contains(to, "://") {
		return issuer.Directory{Path: to}, nil
	}
	cloud, err := azure.Cloud()
	if err != nil {
		return nil, err
	}
	if _, err := issuer.ParseBlobURL(to, cloud.BlobSuffix); err != nil {
		return nil, cli.Usage("--to: %w", err)
	}
	as, err := azure.CheckedLogin()
	if err != nil {
		return nil, err
	}
	cred, err := as.Credential(cloud, policy.ClientOptions{})
	if err != nil {
		return nil, err
	}
	return issuer.NewBlob(to, cloud.BlobSuffix, cred, cloud.Options("lanyard-issuer"))
}

// A visitor are the flags for looking at the public URL.
type visitor struct {
	caFile       string
	allowPrivate bool
}

func (v *visitor) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&v.caFile, "ca-file", "", "PEM `file` of an authority to trust at the issuer's URL, which Entra would not: for a lab")
	cmd.Flags().BoolVar(&v.allowPrivate, "allow-private", false, "accept addresses that Entra cannot reach: for a lab")
	_ = cmd.MarkFlagFilename("ca-file") // fails only for a flag that does not exist
}

func (v *visitor) fetcher() (inspect.Fetcher, error) {
	f := inspect.Fetcher{AllowPrivate: v.allowPrivate}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableKeepAlives = true
	if v.caFile != "" {
		data, err := os.ReadFile(v.caFile)
		if err != nil {
			return f, fmt.Errorf("reading --ca-file: %w", err)
		}
		roots, err := x509.SystemCertPool()
		if err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(data) {
			return f, cli.Usage("--ca-file: %s holds no certificate in PEM form", v.caFile)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	f.HTTP = &http.Client{Transport: t}
	return f, nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
