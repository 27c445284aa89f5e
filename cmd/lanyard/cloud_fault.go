package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
)

func faultCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault",
		Short: "Make the cloud fail on demand",
		Long: `A fault says which requests fail (by method, host, path, machine), how (a status,
latency, no answer, a dropped connection, an asynchronous operation that fails),
and for how many requests or how long. The first fault that fits a request acts.
Faults end with the cloud.`,
		Example: `  lanyard cloud fault add --host management.azure.com --method PATCH --status 429 --retry-after 5s --count 2
  lanyard cloud fault list
  lanyard cloud fault clear`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(faultAddCommand(), faultListCommand(), faultClearCommand())
	return cmd
}

func faultAddCommand() *cobra.Command {
	var flags ownerFlags
	var rule fault.Rule
	var operation fault.Operation
	var retryAfter, latency, lasts, duration time.Duration
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Put a fault in force",
		Long: `Puts a fault in force and prints its id. In patterns, * is any text up to the next
dot (host) or slash (path), ** any text. The metadata service of the machines has
the host 169.254.169.254.`,
		Example: `  lanyard cloud fault add --host login.microsoftonline.com --status 503 --for 30s
  lanyard cloud fault add --host 169.254.169.254 --hang --count 1
  lanyard cloud fault add --host '*.vault.azure.net' --path '/secrets/**' --latency 2s
  lanyard cloud fault add --path '**/virtualMachineScaleSets/*' --method PATCH --operation-duration 30s
  lanyard cloud fault add --path '**/virtualMachineScaleSets/*' --method PATCH --operation-error InternalExecutionError --count 1
  lanyard cloud fault add --drop --count 5`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			rule.RetryAfter, rule.Latency, rule.For = fault.Duration(retryAfter), fault.Duration(latency), fault.Duration(lasts)
			operation.Duration = fault.Duration(duration)
			if operation.Code != "" {
				operation.Message = "A fault of the local cloud."
			}
			if operation != (fault.Operation{}) {
				rule.Operation = &operation
			}
			if err := rule.Validate(); err != nil {
				return cli.Usage("%w (see %q)", err, cmd.CommandPath()+" --help")
			}
			added, err := c.AddFault(cmd.Context(), rule)
			if err != nil {
				return err
			}
			return flags.show(cmd.OutOrStdout(), added, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "fault %s: %s: %s\n", added.ID, requestsOf(added), effectOf(added))
				return err
			})
		},
	}
	flags.add(cmd)
	f := cmd.Flags()
	f.StringVar(&rule.Method, "method", "", "method of the requests")
	f.StringVar(&rule.Host, "host", "", "`pattern` for their host")
	f.StringVar(&rule.Path, "path", "", "`pattern` for their path")
	f.StringVar(&rule.Machine, "machine", "", "`pattern` for the ARM id of the machine whose metadata service is asked")
	f.IntVar(&rule.Status, "status", 0, "answer with this status, 400 to 599")
	f.StringVar(&rule.Body, "body", "", "body of that answer (default an error in the host's form)")
	f.DurationVar(&retryAfter, "retry-after", 0, "Retry-After of that answer")
	f.DurationVar(&latency, "latency", 0, "wait this long first")
	f.BoolVar(&rule.Hang, "hang", false, "never answer")
	f.BoolVar(&rule.Drop, "drop", false, "end the connection without an answer")
	f.DurationVar(&duration, "operation-duration", 0, "how long the asynchronous operation takes that the request starts")
	f.StringVar(&operation.Code, "operation-error", "", "error `code` with which that operation fails")
	f.IntVar(&rule.Count, "count", 0, "how many requests it meets (default all)")
	f.DurationVar(&lasts, "for", 0, "how long it lasts (default until it is cleared)")
	_ = cmd.RegisterFlagCompletionFunc("method", cobra.FixedCompletions([]string{"GET", "PUT", "PATCH", "POST", "DELETE", "HEAD"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("host", cobra.FixedCompletions([]string{"login.microsoftonline.com", "management.azure.com", "*.vault.azure.net", "169.254.169.254"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func faultListCommand() *cobra.Command {
	var flags ownerFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the faults in force",
		Example: `  lanyard cloud fault list
  lanyard cloud fault list -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			rules, err := c.Faults(cmd.Context())
			if err != nil {
				return err
			}
			return flags.show(cmd.OutOrStdout(), rules, func(w io.Writer) error {
				if len(rules) == 0 {
					_, err := fmt.Fprintln(w, "no faults")
					return err
				}
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tREQUESTS\tFAULT\tHITS")
				for _, r := range rules {
					fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", r.ID, requestsOf(r), effectOf(r), r.Hits)
				}
				return t.Flush()
			})
		},
	}
	flags.add(cmd)
	return cmd
}

func faultClearCommand() *cobra.Command {
	var flags ownerFlags
	cmd := &cobra.Command{
		Use:   "clear [ID...]",
		Short: "End faults, all if none is named",
		Example: `  lanyard cloud fault clear 3
  lanyard cloud fault clear`,
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			var ids []string
			if c, err := flags.client(); err == nil {
				if rules, err := c.Faults(cmd.Context()); err == nil {
					for _, r := range rules {
						ids = append(ids, r.ID+"\t"+requestsOf(r)+": "+effectOf(r))
					}
				}
			}
			return ids, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, ids []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			n, err := c.ClearFaults(cmd.Context(), ids...)
			if err != nil {
				return err
			}
			return flags.show(cmd.OutOrStdout(), map[string]int{"cleared": n}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%d cleared\n", n)
				return err
			})
		},
	}
	flags.add(cmd)
	return cmd
}

// requestsOf says which requests a fault meets.
func requestsOf(r fault.Rule) string {
	host, path, method := r.Host, r.Path, r.Method
	if host == "" {
		host = "any host"
	}
	if method == "" {
		method = "any method"
	}
	text := method + " " + host + path
	if r.Machine != "" {
		text += " of " + r.Machine
	}
	return text
}

// effectOf says what a fault does.
func effectOf(r fault.Rule) string {
	var parts []string
	add := func(set bool, format string, args ...any) {
		if set {
			parts = append(parts, fmt.Sprintf(format, args...))
		}
	}
	add(r.Latency > 0, "wait %v", time.Duration(r.Latency))
	add(r.Status > 0, "status %d", r.Status)
	add(r.RetryAfter > 0, "Retry-After %v", time.Duration(r.RetryAfter))
	add(r.Hang, "no answer")
	add(r.Drop, "connection dropped")
	if r.Operation != nil {
		add(r.Operation.Duration > 0, "operation takes %v", time.Duration(r.Operation.Duration))
		add(r.Operation.Code != "", "operation fails with %s", r.Operation.Code)
	}
	add(r.Count > 0, "%d times", r.Count)
	add(r.For > 0, "for %v", time.Duration(r.For))
	return strings.Join(parts, ", ")
}
