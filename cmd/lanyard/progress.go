package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// A progress tells a person what is being done, and every few seconds that it
// is still being done and for how long.
type progress struct {
	w     io.Writer
	every time.Duration
	start time.Time

	mu    sync.Mutex
	step  string
	since time.Time
	stop  func() bool // stops the reminder of the current step
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, every: 10 * time.Second, start: time.Now()}
}

// Step begins a step and ends the one before.
func (p *progress) Step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
	p.step, p.since = fmt.Sprintf(format, args...), time.Now()
	fmt.Fprintf(p.w, "%6.1f s  %s\n", time.Since(p.start).Seconds(), p.step)
	p.remind()
}

// Done ends the last step.
func (p *progress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end()
}

func (p *progress) end() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
	p.step = ""
}

// remind arms the next reminder. The step it is about is compared when it
// fires, because a timer that is stopped too late still runs.
func (p *progress) remind() {
	step := p.step
	p.stop = time.AfterFunc(p.every, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.step != step {
			return
		}
		fmt.Fprintf(p.w, "%6.1f s  … %s: %.0f s so far\n", time.Since(p.start).Seconds(), step, time.Since(p.since).Seconds())
		p.remind()
	}).Stop
}
