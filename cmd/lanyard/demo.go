package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/demo"
	"github.com/lanyard-id/lanyard/internal/estate"
)

func demoCommand() *cobra.Command {
	var flags labFlags
	var output string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start a lab, play the story, print a table, stop",
		Long: `Starts a lab, plays the story of the README on it, prints a table of who asked
for which secret through which door and what came of it, and stops the lab. The
exit code is 0 only if every row is as the story expects.`,
		Example: `  lanyard demo
  lanyard demo -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := checkOutput(output); err != nil {
				return err
			}
			if handled, err := flags.possible(cmd.Context(), cmd.ErrOrStderr()); handled || err != nil {
				return err
			}
			if !cmd.Flags().Changed("state") {
				dir, err := os.MkdirTemp("", "lanyard-demo-")
				if err != nil {
					return fmt.Errorf("making a state directory for the demo: %w", err)
				}
				defer os.RemoveAll(dir)
				flags.state = dir
			}
			p := newProgress(cmd.ErrOrStderr())
			defer p.Done()
			config, err := flags.labConfig(p.Step, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			l, err := estate.Up(cmd.Context(), config)
			if err != nil {
				return err
			}
			defer func() {
				p.Step("stopping")
				err = errors.Join(err, stopLab(cmd.Context(), l))
			}()
			story, err := demo.On(l, p.Step)
			if err != nil {
				return err
			}
			result, err := story.Play(cmd.Context())
			p.Done()
			if err != nil {
				return err
			}
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), result)
			} else {
				err = result.Write(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			if failed := demo.Failed(result.Rows); len(failed) > 0 {
				return fmt.Errorf("%d of %d rows are not as the story expects", len(failed), len(result.Rows))
			}
			return nil
		},
	}
	flags.add(cmd)
	outputFlag(cmd, &output)
	return cmd
}
