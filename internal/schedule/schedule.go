// Package schedule tells when a binding's schedule is open: a function of the
// schedule and an instant, exact where the clocks change.
//
//	v1.Schedule ── New ──> Calendar ── At(t) ──> open or not, and when that changes
package schedule

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

const (
	day = 24 * 60 * 60 // seconds on a wall clock

	// The last New Year before which an end, or the next opening, is looked for,
	// counted from the year of the question: an opening that is always extended has
	// no end, while 29 February is up to eight years away.
	endYears, startYears = 3, 10
)

// A Calendar is a compiled schedule. It is safe for concurrent use.
//
// Windows follow the wall clock: an instant is inside if its local time is. So a
// repeated hour counts twice, and a start that is skipped happens right after
// the gap. Runs of cron start at each instant whose local time matches, and
// right after a gap that swallowed a match; they last the duration in elapsed
// time. A window or run that starts on a holiday does not happen; what began the
// day before goes on.
//
// Inside, instants are seconds since 1970 and local times are seconds since 1970
// on the wall clock; in a stretch without a change of the clocks they differ by
// a constant.
type Calendar struct {
	zone     *time.Location
	windows  []window
	cron     *cronTimes // nil if there is none
	holidays map[int64]bool

	last atomic.Pointer[stretch] // the latest answer: most questions are inside it
}

type window struct {
	days       uint8 // bit 0 is Sunday
	start, end int64 // seconds; an end that is not later than start is on the next day
}

// A stretch is time in which a schedule does not change.
type stretch struct {
	from, until int64 // the answer holds at from <= t < until
	open        bool
	changes     time.Time // zero means never
}

// New compiles a schedule. The error says which field is wrong.
func New(s *v1.Schedule) (*Calendar, error) {
	c := &Calendar{holidays: map[int64]bool{}}
	name := cmp.Or(s.TimeZone, "UTC")
	if name == "Local" { // to package time that is the machine's zone
		return nil, errors.New(`timeZone "Local" is not a time zone: name one such as Europe/Berlin`)
	}
	var err error
	if c.zone, err = time.LoadLocation(name); err != nil {
		return nil, fmt.Errorf("timeZone %.300q is not in the time zone database: write a name such as Europe/Berlin", name)
	}
	for i, w := range s.Windows {
		compiled, err := newWindow(w)
		if err != nil {
			return nil, fmt.Errorf("windows[%d].%w", i, err)
		}
		c.windows = append(c.windows, compiled)
	}
	switch d := s.Duration.Duration; {
	case s.Cron == "" && d == 0 && len(c.windows) > 0:
	case s.Cron == "" && d == 0:
		return nil, errors.New("neither windows nor cron is given, so it never opens")
	case s.Cron == "" || d == 0:
		return nil, errors.New("cron says when and duration says how long: give both or neither")
	default:
		if c.cron, err = newCron(s.Cron, d); err != nil {
			return nil, err
		}
	}
	for i, h := range s.Holidays {
		date, err := time.Parse(time.DateOnly, h)
		if err != nil {
			return nil, fmt.Errorf("holidays[%d] %.300q is not a date such as 2026-12-25", i, h)
		}
		c.holidays[date.Unix()/day] = true
	}
	return c, nil
}

func newWindow(w v1.Window) (window, error) {
	var out window
	var ok bool
	if out.start, ok = clock(w.Start); !ok || out.start == day {
		return out, fmt.Errorf("start %.300q is not a time from 00:00 to 23:59", w.Start)
	}
	if out.end, ok = clock(w.End); !ok {
		return out, fmt.Errorf("end %.300q is not a time from 00:00 to 24:00", w.End)
	}
	for _, d := range w.Days {
		i := slices.Index([]v1.Day{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}, d)
		if i < 0 {
			return out, fmt.Errorf("days: %.300q is none of mon, tue, wed, thu, fri, sat, sun", string(d))
		}
		out.days |= 1 << i
	}
	if len(w.Days) == 0 {
		out.days = 1<<7 - 1
	}
	return out, nil
}

// clock reads HH:MM, up to 24:00, in seconds.
func clock(s string) (int64, bool) {
	if len(s) != 5 || s[2] != ':' || strings.ContainsFunc(s[:2]+s[3:], func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false
	}
	h, m := int64(s[0]-'0')*10+int64(s[1]-'0'), int64(s[3]-'0')*10+int64(s[4]-'0')
	t := h*3600 + m*60
	return t, m < 60 && t <= day
}

// Zone is the time zone of the schedule.
func (c *Calendar) Zone() *time.Location { return c.zone }

// At reports whether the schedule is open at the instant t, and the first later
// instant at which that changes; zero means never. A change is looked for up to
// two years ahead while open, and nine while closed.
func (c *Calendar) At(t time.Time) (open bool, changes time.Time) {
	now := t.Unix() // edges are whole seconds, so a fraction makes no difference
	if s := c.last.Load(); s != nil && s.from <= now && now < s.until {
		return s.open, s.changes
	}
	s := c.stretch(now)
	c.last.Store(s)
	return s.open, s.changes
}

func (c *Calendar) stretch(now int64) *stretch {
	// Limits at New Year, not relative to now: the answer must not depend on when
	// the question was first asked.
	year := time.Unix(now, 0).UTC().Year()
	newYear := func(years int) int64 { return time.Date(year+years, 1, 1, 0, 0, 0, 0, time.UTC).Unix() }
	s := &stretch{from: now, until: newYear(1)}
	at, found := c.end(now, newYear(endYears))
	if s.open = at > now; !s.open {
		at, found = c.start(now, newYear(startYears))
	}
	if found {
		s.until, s.changes = at, time.Unix(at, 0).UTC()
	}
	return s
}

// end follows what is open at now, and what goes on from there, to its end. It
// returns now if nothing is open.
func (c *Calendar) end(now, limit int64) (at int64, found bool) {
	for now < limit {
		next := max(c.windowsUntil(now), c.cronUntil(now))
		if next <= now {
			return now, true
		}
		now = next
	}
	return now, false
}

// start returns the first instant after now at which something opens.
func (c *Calendar) start(now, limit int64) (at int64, found bool) {
	at = min(c.nextWindow(now, limit), c.nextRun(now, limit))
	return at, at < limit
}

// stretchOfZone returns the offset from UTC at an instant and the first and the
// first later instant with it.
func (c *Calendar) stretchOfZone(t int64) (offset, from, until int64) {
	at := time.Unix(t, 0).In(c.zone)
	_, o := at.Zone()
	start, end := at.ZoneBounds()
	from, until = math.MinInt64/2, math.MaxInt64/2
	if !start.IsZero() {
		from = start.Unix()
	}
	if !end.IsZero() {
		until = end.Unix()
	}
	return int64(o), from, until
}

// date returns the day of a local time, counted from 1970-01-01.
func date(local int64) int64 {
	d := local / day
	if local%day < 0 {
		d--
	}
	return d
}

// starts reports whether a window starts on a day.
func (c *Calendar) starts(w *window, d int64) bool {
	weekday := ((d+4)%7 + 7) % 7 // 1970-01-01 was a Thursday
	return w.days&(1<<weekday) != 0 && !c.holidays[d]
}

// windowsUntil returns when the windows that are open at t close if the clocks do
// not change before; t or less if none is open.
func (c *Calendar) windowsUntil(t int64) int64 {
	if len(c.windows) == 0 {
		return t
	}
	offset, _, change := c.stretchOfZone(t)
	d := date(t + offset)
	second := t + offset - d*day
	latest := int64(math.MinInt64)
	for i := range c.windows {
		w := &c.windows[i]
		overnight := w.end <= w.start
		switch {
		case !overnight && w.start <= second && second < w.end && c.starts(w, d):
			latest = max(latest, d*day+w.end)
		case overnight && w.start <= second && c.starts(w, d):
			latest = max(latest, (d+1)*day+w.end)
		case overnight && second < w.end && c.starts(w, d-1):
			latest = max(latest, d*day+w.end)
		}
	}
	if latest == math.MinInt64 {
		return t
	}
	return min(latest-offset, change)
}

// nextWindow returns the first instant after t, when no window is open, at which
// one is; limit if there is none before.
func (c *Calendar) nextWindow(t, limit int64) int64 {
	if len(c.windows) == 0 {
		return limit
	}
	for {
		offset, _, change := c.stretchOfZone(t)
		end := min(change, limit) + offset
		best := end
		for d := date(t + offset); d*day < best; d++ {
			for i := range c.windows {
				w := &c.windows[i]
				if start := d*day + w.start; start > t+offset && start < best && c.starts(w, d) {
					best = start
				}
			}
		}
		if best < end {
			return best - offset
		}
		if t = change; t >= limit {
			return limit
		}
		if c.windowsUntil(t) > t {
			return t
		}
	}
}
