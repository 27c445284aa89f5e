package load

import (
	"context"
	"fmt"
	"slices"

	"github.com/lanyard-id/lanyard/internal/bench/meter"
)

// A Comparison is what is measured beside a bare server.
type Comparison struct {
	Ours, Bare Result
	Ratio      float64 // of throughput, the median of all rounds
}

// Compare puts the load of both on their servers, in turns.
func Compare(ctx context.Context, ours, bare Config, rounds int, step func(round int)) (Comparison, error) {
	var c Comparison
	var ratios []float64
	for i := range rounds {
		step(i + 1)
		var a, b Result
		turns := []func() error{
			func() (err error) { a, err = Run(ctx, ours); return err },
			func() (err error) { b, err = Run(ctx, bare); return err },
		}
		if i%2 == 1 {
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			if err := turn(); err != nil {
				return c, err
			}
		}
		c.Ours, c.Bare = c.Ours.Add(a), c.Bare.Add(b)
		ratios = append(ratios, a.PerSecond()/b.PerSecond())
	}
	c.Ratio = meter.Median(ratios)
	return c, nil
}

// Cost is our processor time in units of the bare server's.
func (c Comparison) Cost() float64 {
	return float64(c.Ours.CPUPerRequest()) / float64(max(c.Bare.CPUPerRequest(), 1))
}

// Note tells both for people; name is who we are.
func (c Comparison) Note(name string) string {
	return fmt.Sprintf("%s %s, p99 %s; bare %s", name, c.Ours.brief(), meter.Brief(meter.Percentile(c.Ours.Latencies, 0.99)), c.Bare.brief())
}

func (r Result) brief() string {
	return fmt.Sprintf("%.0f/s, %s CPU, p50 %s", r.PerSecond(), meter.Micros(r.CPUPerRequest()), meter.Brief(meter.Percentile(r.Latencies, 0.5)))
}
