// Command bench measures what the documents promise about speed and prints it
// as a table beside what Pod Identity v1 and azure-workload-identity v1.6
// measured: see packages bench and door2. It needs root, and the other binaries
// beside it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/lanyard-id/lanyard/internal/bench"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/door2"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
)

// standInVerb is how bench starts itself again, as a server in Azure's place.
const standInVerb = "stand-in"

// quiet is the share of the machine that other programs may have without
// mention.
const quiet = 0.05

const usage = `bench measures what the documents promise about speed.

  bench                      the whole table, about 12 minutes on 2 cores
  bench --quick              shorter and smaller, about 5 minutes
  bench cached-token memory  some experiments or rows by name; bench --list
                             shows them
  bench -o json > now.json   for programs

Progress goes to standard error. The exit status is 0 when every row could be
measured; with --check only when each also is as it should be.

Flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

type settings struct {
	bin                string
	output             string
	quick, list, check bool
	names              []string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == standInVerb {
		if err := standin.Main(ctx, args[1:], stdout); err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		return 0
	}
	s, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	if s.list {
		if err := bench.WriteList(stdout, experiments()); err != nil {
			fmt.Fprintln(stderr, "bench:", err)
			return 1
		}
		return 0
	}
	if err := s.measure(ctx, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (settings, error) {
	var s settings
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, usage)
		f.PrintDefaults()
	}
	f.StringVar(&s.bin, "bin", "", "`directory` of kube, nmi, mic, webhook, proxy, kwok and the rest (default: this program's)")
	f.StringVar(&s.output, "o", "", `"json" for programs; text for people without it`)
	f.BoolVar(&s.quick, "quick", false, "shorter runs and a smaller cluster: less exact")
	f.BoolVar(&s.list, "list", false, "list what can be measured and end")
	f.BoolVar(&s.check, "check", false, "fail if a row is not as it should be")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	s.names = f.Args()
	if s.output != "" && s.output != "json" {
		return s, fmt.Errorf("unknown output format %q: only \"json\" exists", s.output)
	}
	return s, nil
}

// experiments are those of every door, in the order in which they run.
func experiments() []bench.Experiment {
	return slices.Concat(bench.Experiments(), door2.Experiments())
}

func (s settings) measure(ctx context.Context, stdout, stderr io.Writer) error {
	chosen, err := bench.Choose(experiments(), s.names)
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("it needs root: it makes network namespaces, netfilter rules and 110 pods' cables (sudo make bench)")
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this executable: %w", err)
	}
	if s.bin == "" {
		s.bin = filepath.Dir(exe)
	}
	if s.bin, err = filepath.Abs(s.bin); err != nil {
		return err
	}
	klog.SetLogger(logr.Discard()) // watches that end with a cluster are no news
	log.SetLogger(logr.Discard())
	started := time.Now()
	r := &bench.Runner{Config: bed.Config{Bin: s.bin, Self: []string{exe, standInVerb}, Quick: s.quick, Step: func(format string, args ...any) {
		fmt.Fprintf(stderr, "%5.1f s  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
	}}}
	others, err := bench.Others()
	if err != nil {
		return err
	}
	rows, err := r.Run(ctx, chosen)
	if err != nil && len(rows) == 0 {
		return err
	}
	if share, err := others(); err == nil && share > quiet {
		fmt.Fprintf(stderr, "\nOther programs used %.0f %% of this machine meanwhile: times on the wall would be better without them.\n", 100*share)
	}
	return errors.Join(s.write(stdout, rows), err, s.verdict(rows))
}

func (s settings) write(stdout io.Writer, rows []bench.Measurement) error {
	if s.output == "json" {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	return bench.WriteTable(stdout, rows)
}

func (s settings) verdict(rows []bench.Measurement) error {
	missed, failed := bench.Missed(rows)
	switch {
	case failed > 0:
		return fmt.Errorf("%d of %d rows could not be measured", failed, len(rows))
	case s.check && missed > 0:
		return fmt.Errorf("%d of %d rows are not as they should be", missed, len(rows))
	}
	return nil
}
