package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/estate"
)

func cloudCommand() *cobra.Command {
	var state, listen string
	var settings settingsFlags
	cmd := &cobra.Command{
		Use:   "cloud",
		Short: "A local Azure, without a cluster",
		Long: `Serves a local Azure (Entra, ARM, managed identities, Key Vault) under Azure's
own host names, through a CONNECT proxy that leads to these names and no others,
and prints what points az and the SDKs at it. What it holds is kept in the state
directory.

The commands below it are for the owner of a cloud that runs, a lab's as well:
they reach it through a socket in its state directory, which they find by
--state or by the variable LANYARD_CLOUD_STATE that is printed with the others.`,
		Example: `  lanyard cloud --state DIR > env.sh &
  . ./env.sh
  az login --service-principal -u $AZURE_CLIENT_ID -p $AZURE_CLIENT_SECRET --tenant $AZURE_TENANT_ID
  lanyard cloud fault add --host management.azure.com --status 503 --count 3
  lanyard cloud log -f`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			dir, err := filepath.Abs(state)
			if err != nil {
				return err
			}
			c, err := estate.OpenCloud(cmd.Context(), estate.CloudConfig{
				StateDir: dir,
				Settings: settings.apply(cmd, control.Settings{}),
				Logger:   slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
			})
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, c.Close()) }()
			l, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", listen)
			if err != nil {
				return fmt.Errorf("listening for the proxy (choose another --listen): %w", err)
			}
			env, err := c.Files(dir, l.Addr())
			if err != nil {
				return errors.Join(err, l.Close())
			}
			if err := env.WriteShell(cmd.OutOrStdout()); err != nil {
				return errors.Join(err, l.Close())
			}
			return c.ServeProxy(cmd.Context(), l, nil)
		},
	}
	cmd.Flags().StringVar(&state, "state", ".lanyard-cloud", "directory that holds what the cloud holds")
	_ = cmd.MarkFlagDirname("state") // fails only for a flag that does not exist
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "address of the CONNECT proxy; anybody who reaches it reaches the cloud")
	settings.add(cmd)
	cmd.AddCommand(faultCommand(), clockCommand(), cloudLogCommand(), settingsCommand())
	return cmd
}
