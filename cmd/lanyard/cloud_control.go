package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/estate"
)

// ownerFlags are what all commands for a cloud's owner have.
type ownerFlags struct{ state, output string }

func (f *ownerFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.state, "state", "", "state directory of the cloud or the lab (default $"+estate.StateVariable+", else .lanyard-cloud or .lab)")
	_ = cmd.MarkFlagDirname("state") // fails only for a flag that does not exist
	outputFlag(cmd, &f.output)
}

// client finds the cloud.
func (f *ownerFlags) client() (*control.Client, error) {
	if err := checkOutput(f.output); err != nil {
		return nil, err
	}
	dir := f.state
	if dir == "" {
		dir = os.Getenv(estate.StateVariable)
	}
	for _, candidate := range []string{".lanyard-cloud", ".lab"} {
		if _, err := os.Stat(candidate); dir == "" && err == nil {
			dir = candidate
		}
	}
	if dir == "" {
		dir = ".lanyard-cloud"
	}
	return &control.Client{StateDir: dir}, nil
}

// show writes v as JSON if that is asked for, else as text for people.
func (f *ownerFlags) show(w io.Writer, v any, text func(io.Writer) error) error {
	if f.output == "json" {
		return writeJSON(w, v)
	}
	return text(w)
}

func clockCommand() *cobra.Command {
	var flags ownerFlags
	var shift time.Duration
	var reset, freeze, unfreeze bool
	cmd := &cobra.Command{
		Use:   "clock",
		Short: "Show or shift the cloud's clock",
		Long: `Shows the cloud's time, or changes it: tokens, secrets, resources and operations
follow it, certificates and the machine's own clock do not. A restart of the
cloud resets it.`,
		Example: `  lanyard cloud clock
  lanyard cloud clock --shift 1h        an hour further than now; add up
  lanyard cloud clock --freeze          it stands still
  lanyard cloud clock --reset           the real time again`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			var stop *bool
			if freeze || unfreeze {
				stop = &freeze
			}
			var state control.ClockState
			if reset || stop != nil || shift != 0 {
				state, err = c.SetClock(cmd.Context(), reset, stop, fault.Duration(shift))
			} else {
				state, err = c.Clock(cmd.Context())
			}
			if err != nil {
				return err
			}
			return flags.show(cmd.OutOrStdout(), state, func(w io.Writer) error {
				how := "the real time"
				switch d := time.Duration(state.Offset); {
				case d > 0:
					how = fmt.Sprintf("%v ahead of the real time", d)
				case d < 0:
					how = fmt.Sprintf("%v behind the real time", -d)
				}
				if state.Frozen {
					how += ", stands still"
				}
				_, err := fmt.Fprintf(w, "%s (%s)\n", state.Now.Format(time.RFC3339), how)
				return err
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().DurationVar(&shift, "shift", 0, "move the clock by this much, such as 1h or -5m")
	cmd.Flags().BoolVar(&reset, "reset", false, "make it the real time again")
	cmd.Flags().BoolVar(&freeze, "freeze", false, "let it stand still")
	cmd.Flags().BoolVar(&unfreeze, "unfreeze", false, "let it go on")
	cmd.MarkFlagsMutuallyExclusive("freeze", "unfreeze", "reset")
	return cmd
}

func cloudLogCommand() *cobra.Command {
	var flags ownerFlags
	var follow bool
	var tail int
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Show the cloud's request log",
		Long: `Shows who asked which host of the cloud for what, and how it ended: status 0 is
a connection that ended without an answer. Query strings, headers and bodies are
not kept. The file requests.log in the state directory holds the same.`,
		Example: `  lanyard cloud log
  lanyard cloud log -f                  go on as requests come
  lanyard cloud log -o json --tail 100  one JSON object a line`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			return c.Log(cmd.Context(), tail, follow, func(e journal.Entry) error {
				if flags.output == "json" {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(e)
				}
				return writeEntry(cmd.OutOrStdout(), e)
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().IntVar(&tail, "tail", 50, "how many of the last requests to show; -1 is all that the cloud has in memory")
	return cmd
}

func writeEntry(w io.Writer, e journal.Entry) error {
	line := fmt.Sprintf("%s %3d %s %s%s %.1fms", e.Time.Format("15:04:05.000"), e.Status, e.Method, e.Host, e.Path, e.Milliseconds)
	if e.Machine != "" {
		line += " machine=" + e.Machine
	}
	if e.Client != "" {
		line += " client=" + e.Client
	}
	if e.Fault != "" {
		line += " fault=" + e.Fault
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// settingsFlags choose settings of the cloud.
type settingsFlags struct {
	realistic, quick bool
	operation        time.Duration
	retryAfter       time.Duration
	perPatch, per    int
	limits, updates  bool

	propagation, cache, write, refetch time.Duration // of federated credentials and issuers' keys
}

func (f *settingsFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.realistic, "realistic", false, "all of the settings below as near to Azure as possible")
	flags.DurationVar(&f.operation, "operation-duration", 0, "how long a change to a VM or scale set takes; 0 is done when answered")
	flags.DurationVar(&f.retryAfter, "operation-retry-after", 0, "what clients are told to wait between looks at such a change; 0 is 1s")
	flags.IntVar(&f.perPatch, "identities-per-patch", 0, "how many identities one request may list; 0 is any number")
	flags.IntVar(&f.per, "identities-per-machine", 0, "how many identities a machine can have; 0 is any number")
	flags.BoolVar(&f.limits, "limits", false, "throttle as Azure does: ARM per principal and hour, managed identities per second, IMDS per machine")
	flags.DurationVar(&f.propagation, "federated-propagation", 0, "how long until a changed federated credential counts at the token endpoint")
	flags.DurationVar(&f.cache, "federated-cache", 0, "how long the token endpoint remembers what a request met that came before that")
	flags.DurationVar(&f.write, "federated-write", 0, "how long ARM takes to write a federated credential; another write meanwhile is refused with 409")
	flags.DurationVar(&f.refetch, "jwks-refetch", 0, "least time between two fetches of an issuer's keys because of an unknown one; 0 is 1m")
	flags.BoolVar(&f.updates, "metadata-updates", false, "IMDS answers 410 while its machine is being changed")
}

// apply changes s as the flags that were given say.
func (f *settingsFlags) apply(cmd *cobra.Command, s control.Settings) control.Settings {
	if f.realistic {
		s = control.Realistic()
	}
	if f.quick {
		s = control.Settings{}
	}
	for name, set := range map[string]func(){
		"operation-duration":     func() { s.OperationDuration = fault.Duration(f.operation) },
		"operation-retry-after":  func() { s.OperationRetryAfter = fault.Duration(f.retryAfter) },
		"identities-per-patch":   func() { s.IdentitiesPerPatch = f.perPatch },
		"identities-per-machine": func() { s.IdentitiesPerMachine = f.per },
		"limits":                 func() { s.Limits = f.limits },
		"metadata-updates":       func() { s.MetadataUpdates = f.updates },
		"federated-propagation":  func() { s.FederatedPropagation = fault.Duration(f.propagation) },
		"federated-cache":        func() { s.FederatedCache = fault.Duration(f.cache) },
		"federated-write":        func() { s.FederatedWrite = fault.Duration(f.write) },
		"jwks-refetch":           func() { s.JWKSRefetch = fault.Duration(f.refetch) },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	return s
}

func settingsCommand() *cobra.Command {
	var flags ownerFlags
	var settings settingsFlags
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "Show or change how honest the cloud is about time and limits",
		Long: `By default the cloud makes every change at once and throttles nobody. These
settings make it take its time and refuse, as Azure does. Flags that are not
given leave a setting as it is.`,
		Example: `  lanyard cloud settings
  lanyard cloud settings --realistic
  lanyard cloud settings --operation-duration 30s --limits=false
  lanyard cloud settings --federated-propagation 20s --federated-cache 1m
  lanyard cloud settings --quick`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := flags.client()
			if err != nil {
				return err
			}
			old, err := c.Settings(cmd.Context())
			if err != nil {
				return err
			}
			s := settings.apply(cmd, old)
			if s != old {
				if err := c.SetSettings(cmd.Context(), s); err != nil {
					return err
				}
			}
			return flags.show(cmd.OutOrStdout(), s, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "operation duration      %v\noperation retry-after   %v\nidentities per patch    %d\nidentities per machine  %d\nlimits                  %t\nmetadata updates        %t\n"+
					"federated propagation   %v\nfederated cache         %v\nfederated write         %v\njwks refetch            %v\n",
					time.Duration(s.OperationDuration), time.Duration(s.OperationRetryAfter), s.IdentitiesPerPatch, s.IdentitiesPerMachine, s.Limits, s.MetadataUpdates,
					time.Duration(s.FederatedPropagation), time.Duration(s.FederatedCache), time.Duration(s.FederatedWrite), time.Duration(s.JWKSRefetch))
				return err
			})
		},
	}
	flags.add(cmd)
	settings.add(cmd)
	cmd.Flags().BoolVar(&settings.quick, "quick", false, "no duration, no limits")
	cmd.MarkFlagsMutuallyExclusive("realistic", "quick")
	return cmd
}
