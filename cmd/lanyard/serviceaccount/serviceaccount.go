// Package serviceaccount is "lanyard serviceaccount": azwi's commands that
// connect a Kubernetes service account with an identity in Azure, with azwi's
// flags. It has flags, help, completion and output; the work is done by
// internal/serviceaccount.
package serviceaccount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/serviceaccount"
)

// Command is "serviceaccount"; self is how the program is called.
func Command(self string) *cobra.Command {
	return cli.Group(&cobra.Command{
		Use:     "serviceaccount",
		Aliases: []string{"sa"},
		Short:   "Connect service accounts with identities in Azure",
		Long: `Makes what a pod needs to be an identity in Azure without a secret: the identity
(an application or a managed identity), the service account with its
annotations, the federated credential that connects both, and a role.`,
		Example: strings.ReplaceAll(`  lanyard serviceaccount create --help
  lanyard serviceaccount delete --help`, "lanyard ", self+" "),
	}, verbCommand(self, serviceaccount.Create), verbCommand(self, serviceaccount.Delete))
}

// verbCommand is "create" or "delete": all phases.
func verbCommand(self string, v serviceaccount.Verb) *cobra.Command {
	f := &flags{}
	var skip []string
	cmd := &cobra.Command{
		Use:     string(v),
		Short:   "Connect a service account with an identity in Azure",
		Long:    "Runs these phases, of which --skip-phases leaves out some:\n\n" + describe(v) + "\nAll can be repeated: what is so already is left alone.",
		Example: strings.ReplaceAll(createExample, "lanyard ", self+" "),
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd, v, func() ([]string, error) { return f.options.Plan(v, skip) })
		},
	}
	if v == serviceaccount.Delete {
		cmd.Short = "Disconnect a service account from its identity, and delete both"
		cmd.Example = strings.ReplaceAll(deleteExample, "lanyard ", self+" ")
	}
	f.add(cmd, v, "")
	var names []string
	for _, p := range serviceaccount.Phases(v) {
		names = append(names, p.Name)
	}
	cmd.Flags().StringSliceVar(&skip, "skip-phases", nil, "`phases` to leave out")
	cli.Fixed(cmd, "skip-phases", names...)
	cmd.AddCommand(phaseCommand(self, v))
	return cmd
}

func describe(v serviceaccount.Verb) string {
	var b strings.Builder
	for _, p := range serviceaccount.Phases(v) {
		fmt.Fprintf(&b, "  %-20s %s (%s)\n", p.Name, p.Short, p.Alias)
	}
	return b.String()
}

// phaseCommand is "phase", with one command for each.
func phaseCommand(self string, v serviceaccount.Verb) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "phase",
		Short:   "Run one phase of " + string(v),
		Long:    "Runs one of these phases:\n\n" + describe(v),
		Example: fmt.Sprintf("  %s serviceaccount %s phase %s --help", self, v, serviceaccount.PhaseFederated),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if _, err := serviceaccount.FindPhase(v, args[0]); err != nil {
				return cli.Usage("%w", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, p := range serviceaccount.Phases(v) {
		f := &flags{}
		one := &cobra.Command{
			Use: p.Name, Aliases: []string{p.Alias}, Short: p.Short, Long: p.Short + ".", Args: cli.NoArgs,
			Example: strings.ReplaceAll(phaseExamples[string(v)+" "+p.Name], "lanyard ", self+" "),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return f.run(cmd, v, func() ([]string, error) { return []string{p.Name}, nil })
			},
		}
		f.add(one, v, p.Name)
		cmd.AddCommand(one)
	}
	return cmd
}

// run runs phases and prints the result. plan says which, once the options are
// complete: the managed identity may need the subscription.
func (f *flags) run(cmd *cobra.Command, v serviceaccount.Verb, plan func() ([]string, error)) error {
	if err := cli.CheckOutput(f.output, "json"); err != nil {
		return err
	}
	if err := f.complete(cmd); err != nil {
		return err
	}
	phases, err := plan()
	if err != nil {
		return cli.Usage("%w", err)
	}
	if err := errors.Join(f.options.Check(v, phases), f.azure.Login().Check()); err != nil {
		return cli.Usage("%w (see %q)", err, cmd.CommandPath()+" --help")
	}
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), f.timeout, fmt.Errorf("it was not done within --timeout %s", f.timeout))
	defer cancel()
	r := &serviceaccount.Runner{
		Options: f.options,
		Connect: f.connect,
		Cluster: func() (client.Client, error) {
			config, _, err := f.cluster.Config()
			if err != nil {
				return nil, err
			}
			return serviceaccount.NewCluster(config)
		},
		Progress: func(s serviceaccount.Step) { progress(cmd.ErrOrStderr(), s, f.options.DryRun) },
	}
	result, err := r.Run(ctx, v, phases)
	if f.output == "json" {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		err = errors.Join(err, enc.Encode(result))
	}
	if err != nil {
		if ctx.Err() != nil && cmd.Context().Err() == nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		if len(result.Steps) > 0 {
			err = fmt.Errorf("%w\nwhat was done before stays; run the same command again to go on", err)
		}
		return err
	}
	if f.output == "" && v == serviceaccount.Create {
		summary(cmd.OutOrStdout(), result)
	}
	return nil
}

// progress writes a step for people.
func progress(w io.Writer, s serviceaccount.Step, dry bool) {
	action := s.Action
	if dry && (action == "created" || action == "updated" || action == "deleted") {
		action = "would be " + action
	}
	fmt.Fprintf(w, "[%s] %s: %s", s.Phase, s.Object, action)
	if s.ID != "" && !strings.Contains(s.Object, s.ID) {
		fmt.Fprintf(w, ", id %s", s.ID)
	}
	if s.Detail != "" {
		fmt.Fprintf(w, " (%s)", s.Detail)
	}
	fmt.Fprintln(w)
}

// summary writes what there is now, and what is to be done next.
func summary(w io.Writer, r serviceaccount.Result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if r.DryRun {
		fmt.Fprintln(t, "dry run: nothing was changed")
	}
	if p := r.Identity; p != nil {
		fmt.Fprintf(t, "identity\t%s\n", strings.TrimPrefix(p.String(), "the "))
		fmt.Fprintf(t, "client id\t%s\n", p.ClientID)
	}
	if c := r.FederatedCredential; c != nil {
		fmt.Fprintf(t, "subject\t%s\nissuer\t%s\n", c.Subject, c.Issuer)
	}
	if a := r.RoleAssignment; a != nil {
		fmt.Fprintf(t, "role\t%s on %s\n", a.Role, a.Scope)
	}
	a := r.ServiceAccount
	if a != nil {
		fmt.Fprintf(t, "service account\t%s/%s\n", a.Namespace, a.Name)
	}
	_ = t.Flush() // what cannot be written cannot be told
	if a == nil || r.DryRun {
		return
	}
	fmt.Fprintf(w, `
next: pods say that they want the identity, by a label on the pod (not on the service account):
  kubectl -n %s patch deployment NAME --type merge -p '{"spec":{"template":{"metadata":{"labels":{"azure.workload.identity/use":"true"}},"spec":{"serviceAccountName":"%s"}}}}'
`, a.Namespace, a.Name)
	if r.FederatedCredential != nil && slices.ContainsFunc(r.Steps, func(s serviceaccount.Step) bool {
		return s.Phase == serviceaccount.PhaseFederated && s.Action != "unchanged"
	}) {
		fmt.Fprintln(w, "wait a minute before: Entra takes a while to accept a new credential, and remembers that it did not")
	}
}

// completeNames offers namespaces, or service accounts of the chosen one.
func (f *flags) completeNames(accounts bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second) // somebody waits at a prompt
		defer cancel()
		config, _, err := f.cluster.Config()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		c, err := serviceaccount.NewCluster(config)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		namespace := ""
		if accounts {
			namespace = f.namespace(cmd)
		}
		names, err := serviceaccount.Names(ctx, c, namespace)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, typed) }), cobra.ShellCompDirectiveNoFileComp
	}
}
