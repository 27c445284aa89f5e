package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	restInterval = 250 * time.Millisecond
	restBelow    = 64 << 10 // bytes that are made in an interval at rest
	worthwhile   = 4 << 20  // bytes that must have been made since the last time
)

// How much may be made before the garbage is collected, in percent of what
// lives. The first lists of a large cluster are the most that is ever held at a
// time. Later what lives is little, and a collection for every few hundred
// requests would be a tenth of their cost; release gives back what that takes.
const (
	whileReading   = 50
	whileAnswering = 125
)

// collectAt sets that percentage, unless the operator did by GOGC.
func (c config) collectAt(percent int) {
	if c.collect {
		debug.SetGCPercent(percent)
	}
}

// release gives memory back to the kernel when the agent comes to rest, until
// the context ends: what the first lists of a large cluster or a moment of many
// requests took would stay with it for minutes, on every node.
func release(ctx context.Context) error {
	tick := time.NewTicker(restInterval)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var before, released uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		metrics.Read(sample)
		made := sample[0].Value.Uint64()
		if made-before < restBelow && made-released > worthwhile {
			debug.FreeOSMemory()
			released = made
		}
		before = made
	}
}
