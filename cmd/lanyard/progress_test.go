package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProgressTellsWhatIsBeingDoneAndForHowLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b strings.Builder
		p := newProgress(&b)
		p.Step("starting the %s", "API server")
		<-time.After(25 * time.Second)
		synctest.Wait()
		p.Step("waiting for the node")
		p.Done()
		<-time.After(time.Minute)
		want := `   0.0 s  starting the API server
  10.0 s  … starting the API server: 10 s so far
  20.0 s  … starting the API server: 20 s so far
  25.0 s  waiting for the node
`
		if diff := cmp.Diff(want, b.String()); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}
