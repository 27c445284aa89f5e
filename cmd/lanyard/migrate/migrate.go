// Package migrate is the command "lanyard migrate": from Pod Identity v1 to
// Workload Identity, one namespace or one workload at a time, and back.
package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move"
)

// Command returns "migrate"; self is how a person calls this program.
func Command(self string) *cobra.Command {
	example := func(text string) string { return strings.ReplaceAll(text, "lanyard ", self+" ") }
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move workloads from Pod Identity v1 to Workload Identity",
		Long: `Moves workloads from Pod Identity v1 (AzureIdentity, AzureIdentityBinding, nmi) to
Workload Identity (service accounts with federated credentials), one namespace or
one workload at a time. Both serve a workload meanwhile: the label aadpodidbinding
stays until "apply --finish" takes it away. What cannot be migrated is listed with
the reason and the way out.`,
		Example: example(`  lanyard migrate plan -n shop                            what would change, as a diff
  lanyard migrate plan -n shop -o yaml                    the same for GitOps
  lanyard migrate apply -n shop --workload deployment/api  one workload
  lanyard migrate verify -n shop                          a real token for each
  lanyard migrate rollback -n shop                        everything as it was
  lanyard migrate apply -n shop --finish                  nmi is needed no more`),
	}
	return cli.Group(cmd, planCommand(example), applyCommand(example), verifyCommand(example), rollbackCommand(example))
}

func planCommand(example func(string) string) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what would be changed, and what cannot be",
		Long: `Shows a unified diff of each object, the federated credentials to be made, and what
is not migrated, with the reason. It changes nothing.

The proxy sidecar is for programs that ask the instance metadata service and know
no better. With --proxy=auto the audit of nmi decides, which tells what each program
calls itself (--audit-log, or the logs of nmi's pods); without evidence the proxy is
there. The annotation ` + migrate.NeedsIMDS + `: "true" or "false" on a workload decides for it.`,
		Example: example(`  lanyard migrate plan -n shop
  lanyard migrate plan -A -o json
  lanyard migrate plan -n shop --federation=controller -o yaml > workload-identity.yaml`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput(f.output, "json", "yaml"); err != nil {
				return err
			}
			_, p, err := f.plan(cmd)
			if err != nil {
				return err
			}
			switch f.output {
			case "json":
				return p.WriteJSON(cmd.OutOrStdout())
			case "yaml":
				return p.WriteYAML(cmd.OutOrStdout())
			}
			return p.WriteText(cmd.OutOrStdout())
		},
	}
	f.scope(cmd)
	f.planning(cmd)
	f.azure.Add(cmd)
	cli.Output(cmd, &f.output, "json", "yaml")
	return cmd
}

func applyCommand(example func(string) string) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Migrate workloads",
		Long: `Makes the service accounts and federated credentials of the plan, waits until Entra
accepts an exchange for each, and then changes one workload after the other and
waits for its rollout. It stops at the first failure; run again, it goes on there.
It ends with 1 if a workload that --workload names cannot be migrated.
Each object is kept as it was in a Secret beside it, for "rollback".

With --finish it takes the label aadpodidbinding from workloads that are migrated
and verified, and whose pods ask nmi no more.`,
		Example: example(`  lanyard migrate apply -n shop
  lanyard migrate apply -n shop --workload deployment/api --workload cronjob/night
  lanyard migrate apply -n shop --federation=controller
  lanyard migrate apply -n shop --finish`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput(f.output, "json"); err != nil {
				return err
			}
			return f.apply(cmd)
		},
	}
	f.scope(cmd)
	f.planning(cmd)
	f.azure.Add(cmd)
	f.waiting(cmd)
	cli.Output(cmd, &f.output, "json")
	return cmd
}

func (f *flags) apply(cmd *cobra.Command) error {
	m, p, err := f.plan(cmd)
	if err != nil {
		return err
	}
	if p.Finish {
		if err := f.verified(cmd, m, p); err != nil {
			return err
		}
	}
	if err := m.Apply(cmd.Context(), p); err != nil {
		return err
	}
	if f.output == "json" {
		if err := p.WriteJSON(cmd.OutOrStdout()); err != nil {
			return err
		}
		return f.refused(p)
	}
	out := cmd.OutOrStdout()
	for _, w := range p.Workloads {
		fmt.Fprintf(out, "%s: %s\n", w.Workload, w.Action)
		for _, n := range w.Notes {
			fmt.Fprintf(out, "    note: %s\n", n)
		}
	}
	for _, l := range p.Left {
		fmt.Fprintf(out, "%s: not migrated: %s: %s\n    %s\n", l.Workload, l.Reason, l.Text, l.WayOut)
	}
	return f.refused(p)
}

// refused makes it a failure that a workload which was named is not migrated.
func (f *flags) refused(p migrate.Plan) error {
	if len(f.options.Workloads) > 0 && len(p.Left) > 0 {
		return cli.ExitCode(1)
	}
	return nil
}

// verified refuses to take nmi from what does not work without.
func (f *flags) verified(cmd *cobra.Command, m *move.Mover, p migrate.Plan) error {
	var moved []migrate.Ref
	for _, w := range p.Workloads {
		moved = append(moved, w.Workload)
	}
	if len(moved) == 0 {
		return nil
	}
	verdicts, err := m.Verify(cmd.Context(), f.options.Namespace, moved)
	if err != nil {
		return err
	}
	for _, v := range verdicts {
		if !v.OK {
			return fmt.Errorf("%s keeps the label for nmi: %s", v.Workload, strings.Join(v.Problems, "; "))
		}
	}
	return nil
}

func verifyCommand(example func(string) string) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that migrated workloads get the same identity",
		Long: `For each migrated workload: its pods have what the webhook gives, a service-account
token that is bound to one of them is exchanged at Entra, and the token that comes
back is of the same client id, object id and tenant as that of the AzureIdentity. It
ends with 1 if a workload fails. No token is shown.`,
		Example: example(`  lanyard migrate verify -n shop
  lanyard migrate verify -n shop --workload deployment/api -o json`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput(f.output, "json"); err != nil {
				return err
			}
			m, err := f.mover(cmd, false)
			if err != nil {
				return err
			}
			verdicts, err := m.Verify(cmd.Context(), f.options.Namespace, f.options.Workloads)
			if err != nil {
				return err
			}
			return f.show(cmd, verdicts)
		},
	}
	f.scope(cmd)
	f.azure.AddCloud(cmd)
	cli.Output(cmd, &f.output, "json")
	return cmd
}

func (f *flags) show(cmd *cobra.Command, verdicts []move.Verdict) error {
	if len(verdicts) == 0 {
		return errors.New("nothing was migrated here: there are no records (see \"plan\")")
	}
	failed := 0
	for _, v := range verdicts {
		if !v.OK {
			failed++
		}
	}
	if f.output == "json" {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		if err := e.Encode(verdicts); err != nil {
			return err
		}
	} else {
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "WORKLOAD\tSERVICE ACCOUNT\tIDENTITY\tCLIENT ID\tOBJECT ID\tPODS\tSAME")
		for _, v := range verdicts {
			for _, t := range v.Tokens {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%t\n", v.Workload, v.ServiceAccount, t.AzureIdentity, t.ClientID, t.ObjectID, v.Pods, t.OK)
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for _, v := range verdicts {
			for _, p := range v.Problems {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", v.Workload, p)
			}
			for _, n := range v.Notes {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: note: %s\n", v.Workload, n)
			}
		}
	}
	if failed > 0 {
		return cli.ExitCode(1)
	}
	return nil
}

func rollbackCommand(example func(string) string) *cobra.Command {
	var f flags
	var force, keep bool
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Make migrated workloads what they were",
		Long: `Makes every migrated object what it was, waits until the pods are, and removes the
service accounts and federated credentials that were made for them alone. If
somebody else has changed an object meanwhile, nothing is touched and the change is
shown: --keep-edits undoes the migration only, --force makes the object what it was.
What pods still need, such as those of a CronJob's run, stays until they have ended:
it then ends with 1, and is to be run again.`,
		Example: example(`  lanyard migrate rollback -n shop
  lanyard migrate rollback -n shop --workload deployment/api --keep-edits`),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.CheckOutput(f.output, "json"); err != nil {
				return err
			}
			b := move.Rollback{}
			switch {
			case force && keep:
				return cli.Usage("--force and --keep-edits exclude each other")
			case force:
				b.Edits = move.OverwriteEdits
			case keep:
				b.Edits = move.KeepEdits
			}
			m, err := f.mover(cmd, true)
			if err != nil {
				return err
			}
			b.Namespace, b.Workloads, b.Issuer = f.options.Namespace, f.options.Workloads, f.options.Issuer
			return f.rollback(cmd, m, b)
		},
	}
	f.scope(cmd)
	f.azure.Add(cmd)
	f.waiting(cmd)
	cmd.Flags().StringVar(&f.options.Issuer, "issuer", "", "`URL` of the issuer that the cluster had when it was migrated (default: what the API server says)")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite what others have changed meanwhile")
	cmd.Flags().BoolVar(&keep, "keep-edits", false, "keep what others have changed meanwhile")
	cli.Output(cmd, &f.output, "json")
	return cmd
}

// rollback rolls back, and tells a program which objects are what they were and
// which are not yet, also when it fails.
func (f *flags) rollback(cmd *cobra.Command, m *move.Mover, b move.Rollback) error {
	if f.output == "" {
		return m.Rollback(cmd.Context(), b)
	}
	before, err := m.Records(cmd.Context(), b.Namespace)
	if err != nil {
		return err
	}
	failure := m.Rollback(cmd.Context(), b)
	left, err := m.Records(cmd.Context(), b.Namespace)
	if err != nil {
		return errors.Join(failure, err)
	}
	told := struct {
		RolledBack []migrate.Ref `json:"rolledBack"`
		Left       []migrate.Ref `json:"left"` // still as migration made them
	}{[]migrate.Ref{}, []migrate.Ref{}}
	remains := map[migrate.Ref]bool{}
	for _, r := range left {
		remains[r.Object] = true
		told.Left = append(told.Left, r.Object)
	}
	for _, r := range before {
		if !remains[r.Object] {
			told.RolledBack = append(told.RolledBack, r.Object)
		}
	}
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return errors.Join(failure, e.Encode(told))
}
