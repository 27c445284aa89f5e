package bench

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/load"
)

// callers is how many pods ask at the same time.
const callers = 32

// warm asks for each source until it gets its token, as an SDK does, so that
// every token is cached. An answer's Took is the whole time until then.
func warm(ctx context.Context, sources []load.Source) ([]load.Answer, error) {
	answers := make([]load.Answer, len(sources))
	err := bed.Each(ctx, len(sources), func(ctx context.Context, i int) error {
		started := time.Now()
		return bed.Until(ctx, time.Minute, func() error {
			a, err := load.Ask(ctx, sources[i], bed.Metadata, 15*time.Second)
			if err == nil && a.Status != http.StatusOK {
				err = fmt.Errorf("a pod's first request is answered %d: %.400s", a.Status, a.Body)
				if !slices.Contains(retryable, a.Status) {
					return bed.Fatal{Err: err}
				}
			}
			a.Took = time.Since(started)
			answers[i] = a
			return err
		})
	})
	return answers, err
}

// startBare starts the bare server with an answer of nmi's.
func (b *node) startBare(ctx context.Context, answer load.Answer) (err error) {
	if b.bare != nil {
		return nil
	}
	b.bare, err = b.StartBare(ctx, b.NS, bed.At(bed.BarePort), answer)
	return err
}

// compare puts the same load on nmi and on the bare server, in turns.
func (b *node) compare(ctx context.Context, sources []load.Source, keepAlive bool) (load.Comparison, error) {
	answers, err := warm(ctx, sources)
	if err != nil {
		return load.Comparison{}, err
	}
	if err := b.startBare(ctx, answers[0]); err != nil {
		return load.Comparison{}, err
	}
	if err := b.Idle(ctx, b.NMI.PID()); err != nil {
		return load.Comparison{}, err
	}
	rounds, each := 5, 2*time.Second
	if b.Quick {
		rounds, each = 3, time.Second
	}
	anybody := make([]load.Source, len(sources)) // the bare server gives everybody the first pod's token
	for i, s := range sources {
		s.Want = sources[0].Want
		anybody[i] = s
	}
	ours := load.Config{Sources: sources, Host: bed.Metadata.Addr().String(), Target: bed.Metadata, Concurrency: callers, KeepAlive: keepAlive, For: each, PID: b.NMI.PID()}
	bare := ours
	bare.Sources, bare.Target, bare.PID = anybody, bed.At(bed.BarePort), b.bare.PID()
	return load.Compare(ctx, ours, bare, rounds, func(round int) { b.Step("%s, round %d of %d", kind(keepAlive), round, rounds) })
}

func kind(keepAlive bool) string {
	if keepAlive {
		return "keep-alive connections"
	}
	return "a connection per request"
}
