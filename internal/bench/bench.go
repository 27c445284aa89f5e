// Package bench measures what the documents promise about speed, with real
// binaries, a real API server and many pods, and puts it beside what Pod
// Identity v1 measured.
//
//	Runner.Run
//	   bed              a network namespace: API server (bin/kube), stand-ins for Azure, child processes
//	   Experiment.run   fills the bed, starts nmi or mic, puts load on it
//	   Measurement      one row of the table: v1, what is to be reached, what was measured
//
// What depends on how busy the machine is gets a companion: processor time per
// request beside throughput, and a bare http.Server that returns the same
// bytes to the same clients in turns with nmi.
package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
)

// A Row is what is measured, and against what. V1 are the figures of section 9
// of the reference on Pod Identity v1 unless it says otherwise.
type Row struct {
	Name  string `json:"name"`
	What  string `json:"what"`
	V1    string `json:"v1"`
	Reach string `json:"reach"`
}

// A Measurement is what came of a row.
type Measurement struct {
	Row
	Now   string  `json:"now"`
	Value float64 `json:"value"`          // in Unit
	Unit  string  `json:"unit,omitempty"` // "µs", "ms", "s", "MB", "" for a ratio or a count
	Ratio string  `json:"ratio,omitempty"`
	OK    bool    `json:"ok"`
	Note  string  `json:"note,omitempty"`  // what else was seen
	Error string  `json:"error,omitempty"` // why nothing was measured
}

// An Experiment measures some rows on one bed.
type Experiment struct {
	Name string
	What string
	Rows []Row

	Limit time.Duration // of Run
	Run   func(context.Context, *Runner) ([]Measurement, error)

	onNode bool // shares the bed with 110 pods
}

// A Runner runs experiments.
type Runner struct {
	bed.Config // must be set

	shared *node // of the experiments with 110 pods
}

// Others tells how busy other programs kept the machine, as a share of all its
// processors; it is called once before a run and its result once after.
func Others() (after func() (share float64, err error), err error) {
	used := func() (time.Duration, error) {
		busy, err := meter.Busy()
		if err != nil {
			return 0, err
		}
		own, err := meter.Own()
		return busy - own, err
	}
	before, err := used()
	if err != nil {
		return nil, err
	}
	started := time.Now()
	return func() (float64, error) {
		now, err := used()
		return max(0, float64(now-before)/float64(time.Since(started))/float64(runtime.NumCPU())), err
	}, nil
}

// Experiments lists those of door 1 in the order in which they run.
func Experiments() []Experiment {
	return []Experiment{cachedToken(), servicePrincipal(), upstreamDead(), manyIdentities(), assignment(), scale(), firstToken()}
}

// Choose returns, of all experiments, those that have one of the names, or a
// row that has; all of them without any name.
func Choose(all []Experiment, names []string) ([]Experiment, error) {
	if len(names) == 0 {
		return all, nil
	}
	var chosen []Experiment
	found := map[string]bool{}
	for _, e := range all {
		mine := slices.IndexFunc(names, func(n string) bool {
			return n == e.Name || slices.ContainsFunc(e.Rows, func(r Row) bool { return r.Name == n })
		})
		if mine < 0 {
			continue
		}
		chosen = append(chosen, e)
		found[e.Name] = true
		for _, row := range e.Rows {
			found[row.Name] = true
		}
	}
	for _, n := range names {
		if !found[n] {
			return nil, fmt.Errorf("there is no row %q: --list shows them", n)
		}
	}
	return chosen, nil
}

// Run runs the experiments one after the other and returns all their rows. A
// row that could not be measured says why and is not OK; the error is for what
// leaves no table at all, such as an interrupt.
func (r *Runner) Run(ctx context.Context, experiments []Experiment) (all []Measurement, err error) {
	defer func() { err = errors.Join(err, r.closeNode(context.WithoutCancel(ctx))) }()
	for _, e := range experiments {
		if !e.onNode {
			if err := r.closeNode(ctx); err != nil {
				return all, err
			}
		}
		r.Step("%s: %s", e.Name, e.What)
		measured, err := r.one(ctx, e)
		if ctx.Err() != nil {
			return all, context.Cause(ctx)
		}
		all = append(all, complete(e.Rows, measured, err)...)
	}
	return all, nil
}

// A node is the bed that experiments with 110 pods share, with a bare server.
type node struct {
	*bed.Node
	bare *bed.Child
}

func (r *Runner) node(ctx context.Context) (*node, error) {
	if r.shared == nil {
		b, err := bed.NewNode(ctx, r.Config)
		if err != nil {
			return nil, err
		}
		r.shared = &node{Node: b}
	}
	return r.shared, nil
}

func (r *Runner) closeNode(ctx context.Context) error {
	if r.shared == nil {
		return nil
	}
	b := r.shared
	r.shared = nil
	return b.Close(ctx)
}

func (r *Runner) one(ctx context.Context, e Experiment) ([]Measurement, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, e.Limit, fmt.Errorf("it took longer than %s", e.Limit))
	defer cancel()
	m, err := e.Run(ctx, r)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return m, err
}

// complete puts what was measured into the order of the rows; what is missing
// gets the error.
func complete(rows []Row, measured []Measurement, err error) []Measurement {
	out := make([]Measurement, len(rows))
	for i, row := range rows {
		at := slices.IndexFunc(measured, func(m Measurement) bool { return m.Name == row.Name })
		if at >= 0 {
			out[i] = measured[at]
			out[i].Row = row
			continue
		}
		out[i] = Measurement{Row: row, Now: "not measured", Error: "nothing was measured"}
		if err != nil {
			out[i].Error = strings.TrimSpace(err.Error())
		}
	}
	return out
}
