package demo

import (
	"testing"
	"time"

	aadv1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/schedule"
)

func TestTheStorysWindowsAreClosedAndOpenOnEveryDay(t *testing.T) {
	at := func(s *aadv1.Schedule, now time.Time) bool {
		t.Helper()
		c, err := schedule.New(s)
		if err != nil {
			t.Fatal(err)
		}
		open, _ := c.At(now)
		return open
	}
	start := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	for h := range 7 * 24 {
		now := start.Add(time.Duration(h) * time.Hour)
		if later := openLater(now); at(later, now) || at(later, now.Add(time.Hour)) {
			t.Errorf("%s: %+v is open", now, later.Windows)
		}
		if !at(openNow(), now) {
			t.Errorf("%s: the window that is always open is not", now)
		}
	}
}
