package issuer

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/issuer"
)

func publishCommand(self string) *cobra.Command {
	var from source
	var azure cli.Azure
	var to, output string
	var force, remove, watch bool
	var interval, keep time.Duration
	cmd := &cobra.Command{
		Use:   "publish",
		Short: "Publish the issuer's documents to a directory or to blob storage",
		Long: `Takes the issuer and its public keys from a cluster (every API server is asked,
and a key that any of them accepts is published) or from PEM files, checks that
Entra can use them, and writes

  .well-known/openid-configuration     the discovery document
  openid/v1/jwks                       the key set, written first

to --to. What is there is changed carefully: documents of another issuer, or of
another cluster, are not replaced without --force, and no key is removed without
--remove-keys. A private key is never published.

--to https://ACCOUNT.blob.core.windows.net/CONTAINER needs a container with public
read access to blobs and the role Storage Blob Data Contributor on it. With the
container $web the issuer is the account's static website.

--watch keeps it published while keys change. A key that the API servers no longer
have stays published for --keep, so that tokens which it signed can end.`,
		Example: examples(self, `  lanyard issuer publish --to /srv/www/cluster-1
  lanyard issuer publish --to https://ACCOUNT.blob.core.windows.net/oidc --watch --auth-method managed_identity
  lanyard issuer publish --public-keys sa.pub --issuer https://oidc.example/ --to www
  lanyard issuer publish -o json`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput(output, "json"); err != nil {
				return err
			}
			switch {
			case to == "" && output == "":
				return cli.Usage("say where to with --to, or print the documents with -o json")
			case to == "" && watch:
				return cli.Usage("--watch needs --to")
			case interval < time.Second || keep < 0:
				return cli.Usage("--interval is a second at least, and --keep not negative")
			}
			documents, err := from.documents()
			if err != nil {
				return err
			}
			if to == "" {
				d, _, err := documents.Documents(cmd.Context())
				if err != nil {
					return err
				}
				return printDocuments(cmd, d)
			}
			place, err := target(&azure, to)
			if err != nil {
				return err
			}
			if watch {
				p := issuer.Publisher{
					Source: documents, Target: place, Interval: interval, Keep: keep, Permission: issuer.Permission{Force: force},
					Logger: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
				}
				// A mistake is told at once, not every minute.
				changed, err := p.Once(cmd.Context())
				if err != nil {
					return err
				}
				p.Logger.InfoContext(cmd.Context(), "the issuer's documents are published, and watched from now on", "target", place.String(), "changed", changed, "interval", interval)
				p.Permission.Force = false // it was about what was there; the keys of an API server that is away stay
				return p.Run(cmd.Context())
			}
			d, complete, err := documents.Documents(cmd.Context())
			if err != nil {
				return err
			}
			may := issuer.Permission{Force: force}
			if remove {
				if !complete {
					return fmt.Errorf("not every API server answers, and one that does not may have keys: nothing is removed until they do")
				}
				if may.Remove, err = gone(cmd, place, d); err != nil {
					return err
				}
			}
			changed, err := issuer.Publish(cmd.Context(), place, d, may)
			if err != nil {
				return err
			}
			if output != "" {
				return printDocuments(cmd, d)
			}
			verb := "was published already in"
			if changed {
				verb = "is published in"
			}
			keys := "1 key"
			if n := len(d.Keys); n != 1 {
				keys = fmt.Sprintf("%d keys", n)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s with %s %s %s\n", d.Issuer, keys, verb, place)
			fmt.Fprintf(cmd.ErrOrStderr(), "see it as Entra does: %s issuer check\n", self)
			return nil
		},
	}
	from.addCluster(cmd)
	from.addFiles(cmd)
	azure.Add(cmd)
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "`directory`, or https://ACCOUNT.blob.core.windows.net/CONTAINER[/FOLDER]")
	f.BoolVar(&force, "force", false, "replace the documents of another issuer, and remove any key")
	f.BoolVar(&remove, "remove-keys", false, "remove keys that the cluster does not have: tokens which they signed are refused at once")
	f.BoolVar(&watch, "watch", false, "go on, and publish when keys change")
	f.DurationVar(&interval, "interval", time.Minute, "between two looks with --watch")
	f.DurationVar(&keep, "keep", 24*time.Hour, "how long --watch keeps a key published that the API servers no longer have")
	cli.Output(cmd, &output, "json")
	return cmd
}

// gone are the published keys that the documents lack.
func gone(cmd *cobra.Command, t issuer.Target, d issuer.Documents) ([]string, error) {
	was, err := t.Read(cmd.Context())
	if err != nil || was.Keys == nil {
		return nil, err
	}
	keys, err := issuer.ParseKeys(was.Keys)
	if err != nil {
		return nil, nil //nolint:nilerr // Publish says what is wrong with them
	}
	has := map[string]bool{}
	for _, k := range d.Keys {
		has[k.ID] = true
	}
	var ids []string
	for _, k := range keys {
		if !has[k.ID] {
			ids = append(ids, k.ID)
		}
	}
	return ids, nil
}

func printDocuments(cmd *cobra.Command, d issuer.Documents) error {
	if err := d.Validate(); err != nil {
		return err
	}
	configuration, err := d.ConfigurationJSON()
	if err != nil {
		return err
	}
	keys, err := d.KeysJSON()
	if err != nil {
		return err
	}
	return printJSON(cmd.OutOrStdout(), map[string]json.RawMessage{issuer.ConfigurationPath: configuration, issuer.KeysPath: keys})
}
