package issuer

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/issuer/inspect"
)

func checkCommand(self string) *cobra.Command {
	var from source
	var visit visitor
	var output string
	var noCluster bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "See the issuer as Entra does, and compare it with the cluster",
		Long: `Fetches the discovery document and the keys from the issuer's public URL, without
credentials, and compares them with what every API server accepts and signs with.
It ends with 0 if Entra would accept the cluster's tokens, and with 1 if not.

Codes of findings (-o json): issuer-url, private-address, dns, tls, unreachable,
not-found, not-public, redirect, too-large, discovery-unreadable, trailing-slash,
issuer-case, issuer-mismatch, jwks-uri-not-https, jwks-uri-wrong,
jwks-uri-elsewhere, keys-unreadable, private-key-published, no-keys, too-many-keys,
key-id-twice, key-unusable, missing-key, wrong-key, signing-algorithm,
unpublished-key, extra-key, api-server-away.`,
		Example: examples(self, `  lanyard issuer check
  lanyard issuer check --issuer https://oidc.example/cluster-1/ --no-cluster
  lanyard issuer check --issuer https://oidc.example/ --public-keys sa.pub -o json`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput(output, "json"); err != nil {
				return err
			}
			if noCluster && from.issuer == "" || len(from.files) > 0 && from.issuer == "" {
				return cli.Usage("without a cluster, name the issuer's URL with --issuer")
			}
			fetcher, err := visit.fetcher()
			if err != nil {
				return err
			}
			check := inspect.Check{Fetcher: fetcher, Issuer: from.issuer}
			switch {
			case len(from.files) > 0:
				if check.Keys, err = issuer.ReadKeys(from.files...); err != nil {
					return err
				}
			case !noCluster:
				cluster, err := from.cluster()
				if err != nil {
					return fmt.Errorf("%w; without a cluster: --no-cluster --issuer URL", err)
				}
				check.Observe = cluster.Observe
			}
			report, err := check.Run(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				err = printReport(cmd.OutOrStdout(), report)
			}
			if err == nil && !report.OK {
				err = cli.ExitCode(1)
			}
			return err
		},
	}
	from.addCluster(cmd)
	from.addFiles(cmd)
	visit.add(cmd)
	cmd.Flags().BoolVar(&noCluster, "no-cluster", false, "only look at the documents")
	cli.Output(cmd, &output, "json")
	return cmd
}

func printReport(w io.Writer, r inspect.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "issuer     %s\n", r.Issuer)
	for _, id := range r.Published {
		fmt.Fprintf(&b, "published  %s\n", id)
	}
	for _, id := range r.Signing {
		fmt.Fprintf(&b, "signing    %s\n", id)
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%-9s  %s (%s)\n", f.Severity, f.Text, f.Code)
		if f.Fix != "" {
			fmt.Fprintf(&b, "           %s\n", f.Fix)
		}
	}
	if r.OK {
		b.WriteString("Entra can verify tokens of this issuer.\n")
	} else {
		b.WriteString("Entra refuses tokens of this issuer.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
