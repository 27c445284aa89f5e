package issuer

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/issuer"
)

// JWKSCommand returns "jwks", which is azwi's with its flags and its output.
func JWKSCommand(self string) *cobra.Command {
	var files []string
	var output string
	cmd := &cobra.Command{
		Use:   "jwks",
		Short: "Print the JSON Web Key Set of service-account keys",
		Long: `Prints the key set that belongs at ISSUER/openid/v1/jwks, with the key ids that
kube-apiserver uses. Files are PEM; there may be several keys in one. Of a private
key only the public half is used.

"lanyard issuer publish" does the same and puts it where Entra finds it.`,
		Example: examples(self, `  lanyard jwks --public-keys sa.pub --output-file jwks.json
  lanyard jwks --public-keys sa-new.pub,sa-old.pub`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return cli.Usage("--public-keys is required")
			}
			keys, err := issuer.ReadKeys(files...)
			if err != nil {
				return err
			}
			for _, k := range keys {
				if err := k.UsableByEntra(); err != nil {
					fmt.Fprintf(cmd.ErrOrStderr(), "warning: %v\n", err)
				}
			}
			if len(keys) > issuer.MaxKeys {
				fmt.Fprintf(cmd.ErrOrStderr(), "warning: these are %d keys, and Entra reads only the first %d\n", len(keys), issuer.MaxKeys)
			}
			data, err := issuer.FormatKeys(keys)
			if err != nil {
				return err
			}
			data = append(data, '\n')
			if output == "" {
				_, err = cmd.OutOrStdout().Write(data)
				return err
			}
			return writeFile(output, data)
		},
	}
	cmd.Flags().StringSliceVar(&files, "public-keys", nil, "PEM `files` of public or private keys, separated by commas or repeated (required)")
	cmd.Flags().StringVar(&output, "output-file", "", "`file` to write, mode 0600 (default: print)")
	_ = cmd.MarkFlagFilename("public-keys") // these fail only for flags that do not exist
	_ = cmd.MarkFlagFilename("output-file")
	return cmd
}

// writeFile replaces a file in one step, and writes into what is none, such as
// /dev/stdout.
func writeFile(name string, data []byte) error {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return os.WriteFile(name, data, 0o600)
	}
	root, err := os.OpenRoot(filepath.Dir(name))
	if err == nil {
		defer root.Close()
		err = issuer.ReplaceFile(root, filepath.Base(name), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
