package schedule

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// cronTimes are the starts of cron. Parsing is that of the library that CronJobs
// are parsed with; its clock is not used: it skips a start that falls into a gap
// of the wall clock and cannot look back.
type cronTimes struct {
	minutes         []int64 // of a day on which it starts, in seconds, ascending
	dom, month, dow uint64
	either          bool  // both days are restricted: one that fits is enough
	duration        int64 // seconds
}

func newCron(spec string, d time.Duration) (*cronTimes, error) {
	if d < time.Second {
		return nil, fmt.Errorf("duration %s: it must be at least a second", d)
	}
	if strings.Contains(spec, "TZ=") {
		return nil, fmt.Errorf("cron %.300q: the time zone is given by timeZone", spec)
	}
	const fields = cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow
	if strings.HasPrefix(spec, "@every") {
		return nil, fmt.Errorf("cron %.300q: @every has no fixed times: write minute, hour, day of month, month and day of week", spec)
	}
	parsed, err := cron.NewParser(fields | cron.Descriptor).Parse(spec)
	if err != nil {
		return nil, fmt.Errorf("cron %.300q: %w: write minute, hour, day of month, month and day of week, such as \"30 9 * * 1-5\"", spec, err)
	}
	s, ok := parsed.(*cron.SpecSchedule)
	if !ok {
		return nil, fmt.Errorf("cron %.300q has no fixed times", spec)
	}
	const star = 1 << 63 // set by the library where a field is *
	c := &cronTimes{dom: s.Dom, month: s.Month, dow: s.Dow, either: s.Dom&star == 0 && s.Dow&star == 0, duration: int64(d / time.Second)}
	for m := range int64(24 * 60) {
		if s.Hour&(1<<(m/60)) != 0 && s.Minute&(1<<(m%60)) != 0 {
			c.minutes = append(c.minutes, m*60)
		}
	}
	return c, nil
}

// on reports whether there are starts on a day counted from 1970-01-01.
func (c *Calendar) on(d int64) bool {
	at := time.Unix(d*day, 0).UTC()
	_, month, dom := at.Date()
	r := c.cron
	if r.month&(1<<month) == 0 {
		return false
	}
	byDate, byWeekday := r.dom&(1<<dom) != 0, r.dow&(1<<at.Weekday()) != 0
	return (byDate && byWeekday || r.either && (byDate || byWeekday)) && !c.holidays[d]
}

// first returns the first local time in [from, until) that matches.
func (c *Calendar) first(from, until int64) (int64, bool) {
	for d := date(from); d*day < until; d++ {
		if i := c.index(from - d*day); i < len(c.cron.minutes) && c.on(d) {
			at := d*day + c.cron.minutes[i]
			return at, at < until
		}
	}
	return 0, false
}

// latest returns the last local time in [from, until] that matches.
func (c *Calendar) latest(from, until int64) (int64, bool) {
	for d := date(until); (d+1)*day > from; d-- {
		if i := c.index(until-d*day+1) - 1; i >= 0 && c.on(d) {
			at := d*day + c.cron.minutes[i]
			return at, at >= from
		}
	}
	return 0, false
}

// index is that of the first minute of a day at or after second.
func (c *Calendar) index(second int64) int {
	m := c.cron.minutes
	return sort.Search(len(m), func(i int) bool { return m[i] >= second })
}

// swallowed reports whether a local time that matches was skipped by the change
// of the clocks with which a stretch of the zone begins.
func (c *Calendar) swallowed(from, offset int64) bool {
	before, _, _ := c.stretchOfZone(from - 1)
	if before >= offset {
		return false
	}
	_, ok := c.first(from+before, from+offset)
	return ok
}

// cronUntil returns when the runs that go on at t end; t or less if none does.
func (c *Calendar) cronUntil(t int64) int64 {
	if c.cron == nil {
		return t
	}
	floor := t - c.cron.duration // what started then or before is over
	for at := t; at > floor; {
		offset, from, change := c.stretchOfZone(at)
		if local, ok := c.latest(max(from, floor+1)+offset, at+offset); ok {
			return c.chain(local, change+offset) - offset
		}
		if from > floor && c.swallowed(from, offset) {
			return from + c.cron.duration
		}
		at = from - 1
	}
	return t
}

// chain returns the end of the run that starts at a local time, extended by those
// of the same day that start before it is over.
func (c *Calendar) chain(local, change int64) int64 {
	r := c.cron
	midnight := date(local) * day
	i := c.index(local - midnight)
	for i+1 < len(r.minutes) && r.minutes[i+1]-r.minutes[i] <= r.duration && midnight+r.minutes[i+1] < change {
		i++
	}
	return midnight + r.minutes[i] + r.duration
}

// nextRun returns the first instant after t at which a run starts; limit if there
// is none before.
func (c *Calendar) nextRun(t, limit int64) int64 {
	if c.cron == nil {
		return limit
	}
	for at := t + 1; at < limit; {
		offset, from, change := c.stretchOfZone(at)
		if from == at && c.swallowed(from, offset) {
			return at
		}
		if local, ok := c.first(at+offset, min(change, limit)+offset); ok {
			return local - offset
		}
		at = change
	}
	return limit
}
