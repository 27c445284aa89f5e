package serviceaccount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

var cluster labtest.Cluster

// The test binary is the command itself, and as much of az as it needs.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lanyard": lanyard, "az": az})
}

func lanyard() {
	root := &cobra.Command{Use: "lanyard", SilenceUsage: true, SilenceErrors: true}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return cli.Usage("%w (see %q)", err, cmd.CommandPath()+" --help")
	})
	root.AddCommand(Command("lanyard"))
	err := root.Execute()
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "lanyard: %v\n", err)
	var usage cli.UsageError
	if errors.As(err, &usage) {
		os.Exit(2)
	}
	os.Exit(1)
}

// az is "az account get-access-token" of somebody who is signed in as the
// application of AZ_ID and AZ_SECRET. As the real one, it takes a subscription
// or a tenant, not both.
func az() {
	args := strings.Join(os.Args[1:], " ")
	scope := ""
	for i, a := range os.Args {
		if a == "--resource" || a == "--scope" {
			scope = os.Args[i+1]
		}
	}
	if !strings.HasPrefix(args, "account get-access-token") || scope == "" || strings.Contains(args, "--tenant") == strings.Contains(args, "--subscription") {
		fmt.Fprintln(os.Stderr, "ERROR: not so: az "+args)
		os.Exit(2)
	}
	cred, err := azidentity.NewClientSecretCredential(os.Getenv("AZURE_TENANT_ID"), os.Getenv("AZ_ID"), os.Getenv("AZ_SECRET"), nil)
	if err == nil {
		var token azcore.AccessToken
		if token, err = cred.GetToken(context.Background(), policy.TokenRequestOptions{Scopes: []string{strings.TrimSuffix(scope, "/.default") + "/.default"}}); err == nil {
			fmt.Printf(`{"accessToken":%q,"expires_on":%d,"tokenType":"Bearer"}`, token.Token, token.ExpiresOn.Unix())
			return
		}
	}
	fmt.Fprintln(os.Stderr, "ERROR:", err)
	os.Exit(1)
}

// The scripts have a real API server and the local cloud, which they reach
// through a proxy as any program does.
func TestScripts(t *testing.T) {
	kubeconfig := cluster.Kubeconfig(t)
	dir := t.TempDir()
	cloud, err := estate.OpenCloud(t.Context(), estate.CloudConfig{StateDir: filepath.Join(dir, "state"), Settings: control.Settings{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	env, err := cloud.Files(dir, l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cloud.ServeProxy(ctx, l, nil) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, cloud.Close()); err != nil {
			t.Error(err)
		}
	})
	stranger, err := cloud.Credential(estate.PasswordPrincipal)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("all", func(t *testing.T) { // the scripts are parallel: they end before the cloud
		testscript.Run(t, testscript.Params{
			Dir:                 "testdata/script",
			RequireExplicitExec: true,
			RequireUniqueNames:  true,
			Setup: func(e *testscript.Env) error {
				for _, v := range env {
					e.Setenv(v.Name, v.Value)
				}
				e.Setenv("KUBECONFIG", kubeconfig)
				e.Setenv("NAMESPACE", cluster.Namespace(e.T().(testing.TB)))
				e.Setenv("GROUP", azure.Group(cloud.SubscriptionID, estate.ResourceGroup).String())
				e.Setenv("STRANGER_ID", stranger.ClientID)
				e.Setenv("STRANGER_SECRET", string(stranger.Password))
				return nil
			},
		})
	})
}
