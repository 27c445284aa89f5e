package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/access"
)

// displayName is how a person calls this program: as a plugin of kubectl if its
// name says so.
func displayName(argv0 string) string {
	if strings.TrimSuffix(filepath.Base(argv0), ".exe") == "kubectl-lanyard" {
		return "kubectl lanyard"
	}
	return "lanyard"
}

// A counter are the flags with which one meets the desk.
type counter struct {
	cli.Cluster
	output string
}

func (c *counter) add(cmd *cobra.Command) {
	c.Add(cmd, "`namespace` of the binding (default: the context's)")
	cli.Output(cmd, &c.output, access.Formats()...)
}

// desk connects, after the flags were checked.
func (c *counter) desk() (*access.Desk, string, error) {
	if err := cli.CheckOutput(c.output, access.Formats()...); err != nil {
		return nil, "", err
	}
	config, namespace, err := c.Config()
	if err != nil {
		return nil, "", err
	}
	d, err := access.NewDesk(config)
	return d, namespace, err
}

// complete offers names that pick finds in the cluster.
func (f *counter) complete(pick func(ctx context.Context, d *access.Desk, namespace string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second) // somebody waits at a prompt
		defer cancel()
		d, namespace, err := f.desk()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		names, err := pick(ctx, d, namespace)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func accessCommand(self string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "access",
		Short: "Ask for identities that are open only on request",
		Long: `An AzureIdentityBinding with access: OnRequest gives its pods no token until
somebody has asked for it and somebody else has approved, and only for the time
that was asked for.`,
		Example: strings.ReplaceAll(`  lanyard access request payroll --reason "ticket 4711" --duration 1h
  lanyard access list
  lanyard approve payroll-x7k2p`, "lanyard ", self+" "),
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(accessRequestCommand(self), accessListCommand(self))
	return cmd
}

func accessRequestCommand(self string) *cobra.Command {
	var f counter
	var ask access.Ask
	var wait bool
	cmd := &cobra.Command{
		Use:   "request BINDING",
		Short: "Ask that a binding be open for a while",
		Long: `Makes an AccessRequest in your name. With --wait it waits for the decision and
fails if that is no approval.`,
		Example: strings.ReplaceAll(`  lanyard access request payroll --reason "ticket 4711" --duration 1h
  lanyard access request payroll --reason "ticket 4711" --duration 30m --pod worker-0 --wait`, "lanyard ", self+" "),
		Args: cli.OneArg("AzureIdentityBinding to ask for"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case ask.Reason == "":
				return cli.Usage("say why with --reason: whoever decides reads it")
			case ask.Duration < time.Second || ask.Duration > 8760*time.Hour:
				return cli.Usage("say how long with --duration, from 1s to 8760h, such as --duration 1h")
			case ask.Duration%time.Second != 0:
				return cli.Usage("--duration is in whole seconds")
			}
			d, namespace, err := f.desk()
			if err != nil {
				return err
			}
			ask.Namespace, ask.Binding = namespace, args[0]
			r, err := d.Ask(cmd.Context(), ask)
			if err != nil {
				return err
			}
			if !wait {
				if f.output == "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "whoever may decide runs: %s approve %s -n %s\n", self, r.Name, r.Namespace)
				}
				return f.print(cmd, r)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "AccessRequest %s/%s waits for a decision\n", r.Namespace, r.Name)
			if r, err = d.Wait(cmd.Context(), r.Namespace, r.Name); err != nil {
				return err
			}
			if err := f.print(cmd, r); err != nil {
				return err
			}
			if v := r.Status.Decision; v.Verdict != lanyard.Approved {
				return fmt.Errorf("AccessRequest %s/%s was %s by %s: %s", r.Namespace, r.Name, strings.ToLower(string(v.Verdict)), v.By, v.Reason)
			}
			return nil
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	flags.StringVar(&ask.Reason, "reason", "", "why, for whoever decides (needed)")
	flags.DurationVar(&ask.Duration, "duration", 0, "how long, from the approval on (needed)")
	flags.StringVar(&ask.Pod, "pod", "", "only for the pod of this `name` in the same namespace")
	flags.BoolVar(&wait, "wait", false, "wait until it is decided")
	cmd.ValidArgsFunction = f.complete(func(ctx context.Context, d *access.Desk, namespace string) ([]string, error) {
		return d.OnRequest(ctx, namespace)
	})
	return cmd
}

func accessListCommand(self string) *cobra.Command {
	var f counter
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List requests: those that wait first",
		Example: strings.ReplaceAll("  lanyard access list\n  lanyard access list -A -o json", "lanyard ", self+" "),
		Args:    cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, namespace, err := f.desk()
			if err != nil {
				return err
			}
			if all {
				namespace = ""
			}
			requests, err := d.List(cmd.Context(), namespace)
			if err != nil {
				return err
			}
			if len(requests) == 0 && f.output == "" {
				where := "namespace " + namespace
				if all {
					where = "any namespace"
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "there are no requests in %s\n", where)
				return nil
			}
			return access.Print(cmd.OutOrStdout(), f.output, requests, true, all, time.Now())
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "of all namespaces")
	return cmd
}

// print writes one request.
func (f *counter) print(cmd *cobra.Command, r *lanyard.AccessRequest) error {
	return access.Print(cmd.OutOrStdout(), f.output, []lanyard.AccessRequest{*r}, false, false, time.Now())
}

// decisionCommands are "approve", "deny" and "revoke".
func decisionCommands(self string) []*cobra.Command {
	return []*cobra.Command{
		decisionCommand(self, "approve", "Approve a request: its binding is open from now on for the time asked for", lanyard.Approved, func(r *lanyard.AccessRequest) bool { return r.Status.Decision == nil }),
		decisionCommand(self, "deny", "Deny a request, for good", lanyard.Denied, func(r *lanyard.AccessRequest) bool { return r.Status.Decision == nil }),
		decisionCommand(self, "revoke", "End an approved request at once", lanyard.Revoked, func(r *lanyard.AccessRequest) bool {
			return r.Status.Decision != nil && r.Status.Decision.Verdict == lanyard.Approved && time.Now().Before(r.Status.Decision.At.Add(r.Spec.Duration.Duration))
		}),
	}
}

func decisionCommand(self, verb, short string, verdict lanyard.Verdict, offered func(*lanyard.AccessRequest) bool) *cobra.Command {
	var f counter
	var reason string
	cmd := &cobra.Command{
		Use:   verb + " NAME",
		Short: short,
		Long: short + `.

This needs the verb approve on accessrequests.lanyard.id, which the ClusterRole
lanyard-access-approver has. Your name stands in the decision.`,
		Example: fmt.Sprintf("  %[1]s access list\n  %[1]s %[2]s payroll-x7k2p -n shop --reason \"as agreed\"", self, verb),
		Args:    cli.OneArg("AccessRequest to " + verb),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, namespace, err := f.desk()
			if err != nil {
				return err
			}
			r, err := d.Decide(cmd.Context(), namespace, args[0], verdict, reason)
			if err != nil {
				return err
			}
			return f.print(cmd, r)
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever asked")
	cmd.ValidArgsFunction = f.complete(func(ctx context.Context, d *access.Desk, namespace string) ([]string, error) {
		requests, err := d.List(ctx, namespace)
		var names []string
		for i := range requests {
			if offered(&requests[i]) {
				names = append(names, requests[i].Name)
			}
		}
		return names, err
	})
	return cmd
}
