package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/lab"
)

// stopTimeout bounds how long a lab may take to stop before what is left of
// it is killed.
const stopTimeout = 45 * time.Second

func labCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A real Kubernetes cluster and a local Azure on this machine",
		Long: `A lab is a real etcd, API server, controller manager and scheduler, a real
containerd and kubelet, and a local Azure beside them, with Lanyard installed.
It lives in namespaces of its own: nothing on the host changes, and any number
of labs run side by side, each with a state directory.`,
		Example: `  lanyard lab up --detach
  eval "$(lanyard lab env)"
  kubectl get azureidentity -A
  lanyard lab down`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(labUpCommand(), labDownCommand(), labEnvCommand(), labStatusCommand())
	return cmd
}

// stateFlag adds --state to a command.
func stateFlag(cmd *cobra.Command, state *string) {
	cmd.Flags().StringVar(state, "state", ".lab", "directory that holds everything the lab keeps")
	_ = cmd.MarkFlagDirname("state") // fails only for a flag that does not exist
}

// outputFlag adds -o to a command. Empty is text for people.
func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", `"json" for programs; text for people without it`)
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json"}, cobra.ShellCompDirectiveNoFileComp))
}

func checkOutput(output string) error {
	if output != "" && output != "json" {
		return cli.Usage("unknown output format %q: only \"json\" exists", output)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// labFlags are the settings of a lab.
type labFlags struct {
	state    string
	bin      string
	simulate bool
	verbose  bool
	config   lab.APIServer
}

func (f *labFlags) add(cmd *cobra.Command) {
	stateFlag(cmd, &f.state)
	flags := cmd.Flags()
	flags.StringVar(&f.bin, "bin", "", "`directory` of kube, pause, mic, nmi, webhook and workload (default: this program's)")
	flags.BoolVar(&f.simulate, "process-node", false, "simulate the node: run pods as local processes even where a real node is possible")
	flags.BoolVar(&f.verbose, "verbose", false, "write the log of the lab and the cloud to standard error")
	flags.StringArrayVar(&f.config.Args, "apiserver-arg", nil, "a `flag=value` for kube-apiserver; may be repeated")
	flags.StringVar(&f.config.Issuer, "service-account-issuer", "", "issuer of service-account tokens (default the lab's own, served by the local cloud)")
	flags.StringVar(&f.config.AuthenticationConfig, "authentication-config", "", "`file` with an AuthenticationConfiguration for kube-apiserver")
	flags.StringVar(&f.config.AuthorizationConfig, "authorization-config", "", "`file` with an AuthorizationConfiguration for kube-apiserver")
	flags.StringVar(&f.config.AuditPolicy, "audit-policy", "", "`file` with an audit policy (default: metadata of every change)")
}

// labConfig makes the lab's configuration from flags and from where this
// executable lies: the other binaries are beside it.
func (f *labFlags) labConfig(step func(string, ...any), stderr io.Writer) (estate.Config, error) {
	state, err := filepath.Abs(f.state)
	if err != nil {
		return estate.Config{}, err
	}
	exe, err := os.Executable()
	if err != nil {
		return estate.Config{}, fmt.Errorf("finding this executable: %w", err)
	}
	bin := f.bin
	if bin == "" {
		bin = filepath.Dir(exe)
	}
	level := slog.LevelError
	if f.verbose {
		level = slog.LevelInfo
	} else {
		klog.SetLogger(logr.Discard()) // watches that end with the lab are no news
		log.SetLogger(logr.Discard())
	}
	return estate.Config{
		StateDir:    state,
		ProcessNode: f.simulate,
		BinDir:      bin,
		Self:        []string{exe, internalVerb},
		APIServer:   f.config,
		Step:        step,
		Logger:      slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})),
	}, nil
}

func labUpCommand() *cobra.Command {
	var flags labFlags
	var detach bool
	var output string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab",
		Example: `  lanyard lab up                        in the foreground, until interrupted
  lanyard lab up --detach --state DIR   in the background
  lanyard lab up --apiserver-arg=audit-log-path=/tmp/audit.log`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if handled, err := flags.possible(cmd.Context(), cmd.ErrOrStderr()); handled || err != nil {
				return err
			}
			p := newProgress(cmd.ErrOrStderr())
			defer p.Done()
			if detach {
				if err := upDetached(cmd.Context(), flags.state, p); err != nil {
					return err
				}
				return announce(cmd, flags.state, output)
			}
			config, err := flags.labConfig(p.Step, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			ready := readyPipe()
			if ready != nil {
				config.Step = ready.step
			}
			l, err := estate.Up(cmd.Context(), config)
			if err != nil {
				ready.failed(err)
				return err
			}
			if ready != nil {
				ready.ready()
			} else if err := announce(cmd, flags.state, output); err != nil {
				return errors.Join(err, stopLab(cmd.Context(), l))
			}
			p.Done()
			err = l.Wait(cmd.Context())
			p.Step("stopping")
			err = errors.Join(err, stopLab(cmd.Context(), l))
			if cmd.Context().Err() != nil {
				return nil // asked to stop, and stopped
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&detach, "detach", false, "return as soon as the lab is ready and leave it running")
	outputFlag(cmd, &output)
	return cmd
}

// program is how a person called this one, ready to paste.
func program() string {
	if strings.ContainsAny(os.Args[0], " '\"$`\\;&|<>()*?[]#~\t\n") {
		return estate.Quote(os.Args[0])
	}
	return os.Args[0]
}

// stopLab stops a lab, even when ctx has ended.
func stopLab(ctx context.Context, l *estate.Estate) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return l.Stop(ctx)
}

// announce ends "lab up" with three lines that a person can paste.
func announce(cmd *cobra.Command, state, output string) error {
	status, err := estate.ReadStatus(state)
	if err != nil {
		return err
	}
	if output == "json" {
		status.Env = nil // "lab env" prints it, secret and all
		return writeJSON(cmd.OutOrStdout(), status)
	}
	fmt.Fprintf(cmd.OutOrStdout(), `
export KUBECONFIG=%s
eval "$(%s lab env --state %s)"
%s lab down --state %s
`, estate.Quote(status.Kubeconfig), program(), estate.Quote(state), program(), estate.Quote(state))
	return nil
}

func labDownCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Stop a lab and remove what it left running",
		Example: `  lanyard lab down --state DIR`,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p := newProgress(cmd.ErrOrStderr())
			defer p.Done()
			p.Step("stopping the lab in %s", state)
			return estate.Down(cmd.Context(), state) // no deadline: it kills what does not end in time
		},
	}
	stateFlag(cmd, &state)
	return cmd
}

func labEnvCommand() *cobra.Command {
	var state, output string
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print what points kubectl, az and the SDKs at a lab",
		Long: `Prints the exports that point kubectl, az and clients in Go, node and Python at
the lab. AZURE_CLIENT_SECRET among them is the secret of the lab's owner: it is
worth nothing outside this lab.`,
		Example: `  eval "$(lanyard lab env)"
  az login --service-principal -u $AZURE_CLIENT_ID -p $AZURE_CLIENT_SECRET --tenant $AZURE_TENANT_ID`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			status, err := estate.ReadStatus(state)
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), status.Env)
			}
			return status.Env.WriteShell(cmd.OutOrStdout())
		},
	}
	stateFlag(cmd, &state)
	outputFlag(cmd, &output)
	return cmd
}

func labStatusCommand() *cobra.Command {
	var state, output string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say whether a lab is up and where",
		Long:    "Says whether a lab is up and where. The exit code is 1 when none is.",
		Example: `  lanyard lab status --state DIR -o json`,
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			status, err := estate.ReadStatus(state)
			if err != nil {
				return err
			}
			status.Env = nil // "lab env" prints it, secret and all
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), status)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "up since %s (process %d)\nnode        %s\nkubeconfig  %s\nissuer      %s\nvault       %s\nproxy       %s\n",
				status.Since.Format(time.RFC3339), status.PID, status.Node, status.Kubeconfig, status.Issuer, status.Vault, status.Proxy)
			return nil
		},
	}
	stateFlag(cmd, &state)
	outputFlag(cmd, &output)
	return cmd
}

// internalVerb is how the lab starts this program again, as a node's first
// process or as a simulated container.
const internalVerb = "internal"

func internalCommand() *cobra.Command {
	return &cobra.Command{
		Use:                internalVerb,
		Short:              "What the lab starts by itself",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return lab.Main(cmd.Context(), args, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

// possible decides how pods run here. Where no real node is possible it says
// in one line what is missing and chooses local processes; without root it
// runs this same command line in a user namespace, and then handled is true.
func (f *labFlags) possible(ctx context.Context, stderr io.Writer) (handled bool, err error) {
	missing := lab.Missing()
	if len(missing) == 0 {
		return false, nil
	}
	if os.Getuid() != 0 && !lab.InUserNamespace() {
		code, err := lab.RunInUserNamespace(ctx, os.Args[1:])
		if err != nil {
			return true, fmt.Errorf("no lab is possible here without root: %w", err)
		}
		if code != 0 {
			return true, cli.ExitCode(code)
		}
		return true, nil
	}
	if !f.simulate {
		lines := make([]string, len(missing))
		for i, m := range missing {
			lines[i] = m.String()
		}
		fmt.Fprintf(stderr, "simulated node: pods run as local processes, because a real node needs %s\n", strings.Join(lines, ", "))
		f.simulate = true
	}
	return false, nil
}
