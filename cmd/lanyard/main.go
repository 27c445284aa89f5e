// Command lanyard is Lanyard's one command for people: it starts a real
// Kubernetes cluster with a local Azure beside it, plays the story that the
// README tells, runs the local cloud alone, connects service accounts with
// identities, publishes and rotates issuer keys, migrates from Pod Identity v1,
// and asks for and grants access to identities that are open on request. As
// kubectl-lanyard it is kubectl's plugin.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/cmd/lanyard/issuer"
	"github.com/lanyard-id/lanyard/cmd/lanyard/migrate"
	"github.com/lanyard-id/lanyard/cmd/lanyard/serviceaccount"
)

// version is set at link time.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1   // what was asked for did not happen
	exitUsage       = 2   // the command line is wrong
	exitInterrupted = 130 // 128 + SIGINT, as shells report it
)

// run runs the command line args and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var usage cli.UsageError
	var code cli.ExitCode
	switch {
	case errors.As(err, &code):
		return int(code) // of a command that has said everything
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "lanyard: interrupted")
		return exitInterrupted
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "lanyard: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "lanyard: %v\n", err)
		return exitFailed
	}
}

func rootCommand() *cobra.Command {
	self := displayName(os.Args[0])
	root := &cobra.Command{
		Use:         "lanyard",
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: self},
		Short:       "Azure identities for every workload on any Kubernetes cluster",
		Long: `Lanyard gives every workload on any Kubernetes cluster an Azure identity, with no
secret in the pod.

This command starts a lab: a real Kubernetes cluster and a local Azure on this
machine, in namespaces of their own. Nothing on the host changes. On any cluster it
connects service accounts with identities, publishes and rotates the keys of the
cluster's issuer, moves workloads off Pod Identity v1, and asks for access to
identities that are open on request.`,
		Example: `  lanyard demo                          start everything, play the story, stop
  lanyard lab up --detach               start a lab and leave it up
  eval "$(lanyard lab env)"             point kubectl, az and the SDKs at it
  lanyard cloud                         the local Azure alone, without a cluster
  lanyard serviceaccount create --help  give a service account an identity
  lanyard issuer check                  what does Entra see of this cluster?
  lanyard migrate plan -n NAMESPACE     from Pod Identity v1 to Workload Identity
  lanyard access request --help         ask for an identity that is open on request`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cli.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("lanyard {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return cli.Usage("%w (see %q)", err, cmd.CommandPath()+" --help")
	})
	root.AddCommand(labCommand(), cloudCommand(), demoCommand(), accessCommand(self), migrate.Command(self), serviceaccount.Command(self),
		issuer.Command(self), issuer.JWKSCommand(self), internalCommand())
	root.AddCommand(decisionCommands(self)...)
	return root
}
