package issuer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/issuer/rotation"
)

const rotateHelp = `Replaces the key that signs service-account tokens while everything that uses
tokens goes on:

  add      a new key pair; the bundle sa.pub holds both public keys
  accept   API servers restart: every one of them verifies with both
  publish  the issuer's URL shows both
  wait     --cache-wait, until no cache is left that has not seen the new key
  switch   sa.key is the new key; API servers restart: every one signs with it
  drain    --token-lifetime, until the last token of the old key has ended
  remove   the bundle holds the new key only; API servers restart
  retract  the issuer's URL shows the new key only; the old private key is deleted

A step is done when that can be seen: at every API server, in the head of a fresh
token, at the issuer's public URL. The state is in the file sa.rotation.json beside
the keys. Interrupted at whatever point, the same command goes on; --dry-run says
what is left and when. With --no-wait it does what can be done now and ends, for
cron. "rotate abort" takes the new key back until the step switch.

--key-dir holds the files that kube-apiserver reads:

  --service-account-signing-key-file=DIR/sa.key
  --service-account-key-file=DIR/sa.pub

Without --restart-command the command says what to do on the control plane nodes
and waits until it sees that it was done. With kubeadm the directory is
/etc/kubernetes/pki on every control plane node, and kube-apiserver is a static
pod: it restarts when /etc/kubernetes/manifests/kube-apiserver.yaml is moved away,
its container has ended, and the file is moved back.

--restart-command is run by sh for each step that needs it (accept, switch, remove,
abort), with LANYARD_STEP, LANYARD_KEY_DIR and LANYARD_API_SERVERS (their URLs,
separated by spaces). It copies sa.key and sa.pub to every node and restarts the API
servers one after the other; in step switch also kube-controller-manager.

--to publishes as "lanyard issuer publish" does. Without it, somebody else must:
"lanyard issuer publish --watch" or "serve".`

// A turn are the flags of rotate and its subcommands.
type turn struct {
	source
	visitor
	azure                     cli.Azure
	dir, to, restart, output  string
	cacheWait, lifetime, poll time.Duration
	noWait, ignoreLegacy      bool
}

func (t *turn) add(cmd *cobra.Command) {
	t.addCluster(cmd)
	t.visitor.add(cmd)
	cmd.Flags().StringVar(&t.dir, "key-dir", "", "`directory` of sa.key and sa.pub (required)")
	_ = cmd.MarkFlagDirname("key-dir") // fails only for a flag that does not exist
	cli.Output(cmd, &t.output, "json")
}

func (t *turn) addWork(cmd *cobra.Command) {
	t.azure.Add(cmd)
	f := cmd.Flags()
	f.StringVar(&t.to, "to", "", "where to publish: a `directory`, or https://ACCOUNT.blob.core.windows.net/CONTAINER[/FOLDER]; without it somebody else publishes")
	f.StringVar(&t.restart, "restart-command", "", "`command` for sh that gives the key files to the API servers and restarts them; without it you are told what to do")
	f.DurationVar(&t.cacheWait, "cache-wait", rotation.DefaultCacheWait, "between publishing the new key and signing with it")
	f.DurationVar(&t.lifetime, "token-lifetime", 0, "of the longest token (default: what the API servers give when asked for 24h); with less, replace the pods whose tokens live longer during the step drain, also those that only use the API server")
	f.DurationVar(&t.poll, "interval", rotation.DefaultPoll, "between two looks")
	f.BoolVar(&t.noWait, "no-wait", false, "do what can be done now, and end")
	f.BoolVar(&t.ignoreLegacy, "ignore-legacy-tokens", false, "remove the old key although Secrets hold tokens of it, which then end")
}

func (t *turn) check() error {
	switch {
	case t.dir == "":
		return cli.Usage("--key-dir is required: the directory of sa.key and sa.pub")
	case t.cacheWait < 0 || t.lifetime < 0 || t.poll < 0:
		return cli.Usage("durations are not negative")
	}
	return cli.CheckOutput(t.output, "json")
}

// rotation makes the rotation; its directory must be closed.
func (t *turn) rotation(out io.Writer) (*rotation.Rotation, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	cluster, err := t.cluster()
	if err != nil {
		return nil, err
	}
	fetcher, err := t.fetcher()
	if err != nil {
		return nil, err
	}
	r := &rotation.Rotation{
		Servers: cluster, Public: fetcher.KeyIDs, CacheWait: t.cacheWait, Lifetime: t.lifetime, Poll: t.poll,
		NoWait: t.noWait, IgnoreLegacyTokens: t.ignoreLegacy,
		Tell: func(format string, args ...any) {
			fmt.Fprintf(out, "%s  %s\n", stamp(time.Now()), fmt.Sprintf(format, args...))
		},
	}
	if t.to != "" {
		place, err := target(&t.azure, t.to)
		if err != nil {
			return nil, err
		}
		r.Publish = rotation.PublishTo(cluster, place)
	}
	if t.restart != "" {
		r.Restart = t.runRestart(out)
	}
	r.Dir, err = rotation.OpenKeyDir(t.dir)
	return r, err
}

func (t *turn) runRestart(out io.Writer) func(context.Context, rotation.Step, []string) error {
	return func(ctx context.Context, step rotation.Step, servers []string) error {
		cmd := exec.CommandContext(ctx, "sh", "-c", t.restart)
		cmd.Env = append(os.Environ(), "LANYARD_STEP="+string(step), "LANYARD_KEY_DIR="+t.dir, "LANYARD_API_SERVERS="+strings.Join(servers, " "))
		cmd.Stdout, cmd.Stderr = out, out
		// Interrupted between two API servers, it may want to finish the one.
		cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(syscall.SIGTERM) }, time.Minute
		return cmd.Run()
	}
}

func rotateCommand(self string) *cobra.Command {
	var t turn
	var dryRun, again bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the key that signs service-account tokens",
		Long:  rotateHelp,
		Example: examples(self, `  lanyard issuer rotate --key-dir /etc/kubernetes/pki --dry-run
  lanyard issuer rotate --key-dir keys --to https://ACCOUNT.blob.core.windows.net/oidc --restart-command ./restart-api-servers
  lanyard issuer rotate status --key-dir keys -o json
  lanyard issuer rotate abort --key-dir keys --to https://ACCOUNT.blob.core.windows.net/oidc`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			r, err := t.rotation(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, r.Dir.Close()) }()
			if dryRun {
				p, err := r.Plan(cmd.Context())
				if err != nil {
					return err
				}
				return t.printPlan(cmd.OutOrStdout(), p)
			}
			if again {
				if err := r.Begin(); err != nil {
					return err
				}
			}
			return t.finish(cmd, r.Run(cmd.Context()))
		},
	}
	t.add(cmd)
	t.addWork(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be done, and when")
	cmd.Flags().BoolVar(&again, "new", false, "start another rotation after one that is finished")
	cmd.AddCommand(rotateStatusCommand(self), rotateAbortCommand(self))
	return cmd
}

// finish prints where the rotation is.
func (t *turn) finish(cmd *cobra.Command, err error) error {
	var waiting *rotation.Waiting
	if err != nil && !errors.As(err, &waiting) {
		return err
	}
	s, err := rotation.ReadState(t.dir)
	if err != nil {
		return err
	}
	if t.output == "json" {
		return printJSON(cmd.OutOrStdout(), s)
	}
	if waiting != nil {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%v; call this command again then\n", waiting)
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s was %s, the new one is %s\n", s.Step, s.Issuer, s.Old, s.New)
	return err
}

func (t *turn) printPlan(w io.Writer, p rotation.Plan) error {
	if t.output == "json" {
		return printJSON(w, p)
	}
	fmt.Fprintf(w, "issuer       %s\nsigning key  %s\nAPI servers  %s\n\n", p.Issuer, p.Old, strings.Join(p.Servers, " "))
	for _, s := range p.Steps {
		fmt.Fprintf(w, "%s  %-8s %s\n", stamp(s.At), s.Step, s.What)
	}
	for _, n := range p.Notes {
		fmt.Fprintf(w, "\nnote: %s\n", n)
	}
	_, err := fmt.Fprintln(w, "\nNothing was changed.")
	return err
}

func rotateStatusCommand(self string) *cobra.Command {
	var t turn
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say where a rotation is, as remembered and as observed",
		Example: examples(self, "  lanyard issuer rotate status --key-dir keys -o json"),
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := t.check(); err != nil {
				return err
			}
			cluster, err := t.cluster()
			if err != nil {
				return err
			}
			fetcher, err := t.fetcher()
			if err != nil {
				return err
			}
			s, err := rotation.Look(cmd.Context(), t.dir, cluster, fetcher.KeyIDs)
			if err != nil {
				return err
			}
			if t.output == "json" {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	t.add(cmd)
	return cmd
}

func printStatus(w io.Writer, s rotation.Status) error {
	step := string(s.State.Step)
	if step == "" {
		step = "no rotation was begun"
	}
	fmt.Fprintf(w, "step       %s\n", step)
	for name, id := range map[string]string{"old key": s.State.Old, "new key": s.State.New} {
		if id != "" {
			fmt.Fprintf(w, "%-9s  %s\n", name, id)
		}
	}
	for _, x := range s.Servers {
		switch {
		case x.Problem != "":
			fmt.Fprintf(w, "API server %s: %s\n", x.URL, x.Problem)
		default:
			fmt.Fprintf(w, "API server %s signs with %s and accepts %s\n", x.URL, x.Signs, strings.Join(x.Accepts, " "))
		}
	}
	_, err := fmt.Fprintf(w, "published  %s\n", strings.Join(s.Published, " "))
	if s.Problem != "" {
		_, err = fmt.Fprintf(w, "problem    %s\n", s.Problem)
	}
	return err
}

func rotateAbortCommand(self string) *cobra.Command {
	var t turn
	cmd := &cobra.Command{
		Use:     "abort",
		Short:   "Take the new key back, until it signs",
		Example: examples(self, "  lanyard issuer rotate abort --key-dir keys --to https://ACCOUNT.blob.core.windows.net/oidc"),
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			r, err := t.rotation(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, r.Dir.Close()) }()
			return t.finish(cmd, r.Abort(cmd.Context()))
		},
	}
	t.add(cmd)
	t.addWork(cmd)
	return cmd
}

// It is what a rotation asks for.
var _ rotation.Servers = (*issuer.Cluster)(nil)
