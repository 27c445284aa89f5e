package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/internal/estate"
)

func cloudCommand() *cobra.Command {
	var state, listen string
	cmd := &cobra.Command{
		Use:   "cloud",
		Short: "A local Azure, without a cluster",
		Long: `Serves a local Azure (Entra, ARM, managed identities, Key Vault) under Azure's
own host names, through a CONNECT proxy that leads to these names and no others,
and prints what points az and the SDKs at it. What it holds is kept in the state
directory.`,
		Example: `  lanyard cloud --state DIR > env.sh &
  . ./env.sh
  az login --service-principal -u $AZURE_CLIENT_ID -p $AZURE_CLIENT_SECRET --tenant $AZURE_TENANT_ID`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			dir, err := filepath.Abs(state)
			if err != nil {
				return err
			}
			c, err := estate.OpenCloud(cmd.Context(), estate.CloudConfig{
				StateDir: dir,
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
	return cmd
}
