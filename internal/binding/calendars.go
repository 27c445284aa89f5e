package binding

import (
	"slices"
	"sync"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/schedule"
)

// Calendars remembers the calendars of bindings. The zero value is ready to use,
// by several goroutines; it is a cache of schedule.New and changes no answer.
type Calendars struct {
	mu  sync.Mutex
	all map[bindingKey]compiled
}

type bindingKey struct{ namespace, name string }

type compiled struct {
	schedule *v1.Schedule
	calendar *schedule.Calendar
	err      error
}

// maxCalendars bounds what bindings that are gone leave behind.
const maxCalendars = 20_000

// of returns the calendar of a binding with a schedule.
func (c *Calendars) of(b *v1.AzureIdentityBinding) (*schedule.Calendar, error) {
	if c == nil {
		return schedule.New(b.Spec.Schedule)
	}
	key := bindingKey{b.Namespace, b.Name}
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.all[key]
	if ok && sameSchedule(have.schedule, b.Spec.Schedule) {
		return have.calendar, have.err
	}
	if len(c.all) >= maxCalendars {
		clear(c.all)
	}
	if c.all == nil {
		c.all = map[bindingKey]compiled{}
	}
	// A copy: a schedule that its owner changes in place must not look the same.
	have = compiled{schedule: b.Spec.Schedule.DeepCopy()}
	have.calendar, have.err = schedule.New(have.schedule)
	c.all[key] = have
	return have.calendar, have.err
}

func sameSchedule(a, b *v1.Schedule) bool {
	return a.TimeZone == b.TimeZone && a.Cron == b.Cron && a.Duration == b.Duration && slices.Equal(a.Holidays, b.Holidays) &&
		slices.EqualFunc(a.Windows, b.Windows, func(x, y v1.Window) bool {
			return x.Start == y.Start && x.End == y.End && slices.Equal(x.Days, y.Days)
		})
}
