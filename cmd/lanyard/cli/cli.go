// Package cli is what the commands of lanyard share: mistakes on the command
// line, exit codes, and the flags that name a cluster.
package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// A UsageError is a mistake on the command line: the program ends with 2.
type UsageError struct{ error }

// Unwrap returns the mistake.
func (e UsageError) Unwrap() error { return e.error }

// Usage makes a UsageError.
func Usage(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// An ExitCode is the failure of a command that has said everything itself.
type ExitCode int

func (c ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// NoArgs refuses arguments with what to do instead.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usage("unknown argument %q (see %q)", args[0], cmd.CommandPath()+" --help")
	}
	return nil
}

// OneArg wants exactly one argument and says which.
func OneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0 || args[0] == "":
			return Usage("name the %s (see %q)", what, cmd.CommandPath()+" --help")
		case len(args) > 1:
			return Usage("unknown argument %q (see %q)", args[1], cmd.CommandPath()+" --help")
		}
		return nil
	}
}

// Group is a command that only has subcommands: alone it prints its help.
func Group(cmd *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	cmd.Args = NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(subcommands...)
	return cmd
}

// Output adds the flag -o, which takes one of formats or nothing for text.
// Check it with CheckOutput before any work is done.
func Output(cmd *cobra.Command, format *string, formats ...string) {
	cmd.Flags().StringVarP(format, "output", "o", "", alternatives(formats)+"; text for people without it")
	Fixed(cmd, "output", formats...)
}

// CheckOutput refuses a format that is not one of formats.
func CheckOutput(format string, formats ...string) error {
	if format == "" || slices.Contains(formats, format) {
		return nil
	}
	return Usage("unknown output format %q: use %s", format, alternatives(formats))
}

func alternatives(formats []string) string {
	last := len(formats) - 1
	if last < 1 {
		return strings.Join(formats, "")
	}
	return strings.Join(formats[:last], ", ") + " or " + formats[last]
}
