package schedule_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/robfig/cron/v3"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/schedule"
	"github.com/lanyard-id/lanyard/internal/schedule/scheduletest"
)

func TestTheCalendar(t *testing.T) {
	for _, c := range []struct {
		name     string
		schedule string
		from     string // where the walk begins, UTC
		want     string // the state there, then each change, UTC; "never" ends it
	}{
		{"office hours", "UTC; mon,tue,wed,thu,fri 09:00-17:00", "2026-11-20T16:00Z", "open 11-20T17:00 11-23T09:00 11-23T17:00"},
		{"days are days of the zone", "Australia/Sydney; mon 00:00-24:00", "2026-11-22T12:00Z", "closed 11-22T13:00 11-23T13:00 11-29T13:00"},
		{"no zone is UTC", "; 10:00-11:00", "2026-11-22T12:00Z", "closed 11-23T10:00 11-23T11:00"},
		{"without days it is every day", "UTC; 10:00-11:00", "2026-11-20T10:30Z", "open 11-20T11:00 11-21T10:00 11-21T11:00 11-22T10:00"},
		{"past midnight belongs to the day of the start", "UTC; fri 22:00-06:00", "2026-11-20T12:00Z", "closed 11-20T22:00 11-21T06:00 11-27T22:00"},
		{"an end that equals the start is a whole day later", "UTC; fri 22:00-22:00", "2026-11-20T12:00Z", "closed 11-20T22:00 11-21T22:00"},
		{"windows that touch are one", "UTC; mon 09:00-12:00; mon 12:00-13:00; mon 12:30-14:00", "2026-11-23T08:00Z", "closed 11-23T09:00 11-23T14:00 11-30T09:00"},
		{"all days all day never closes", "Europe/Berlin; 00:00-24:00", "2026-11-23T08:00Z", "open never"},
		{"all but a holiday", "Europe/Berlin; 00:00-24:00; not 2026-12-25", "2026-11-23T08:00Z", "open 12-24T23:00 12-25T23:00 never"},
		{"a holiday keeps what starts on it shut", "UTC; 22:00-06:00; not 2026-12-25", "2026-12-24T23:00Z", "open 12-25T06:00 12-26T22:00"},

		{"Berlin in spring: the clock on the wall decides", "Europe/Berlin; 01:00-04:00", "2026-03-28T23:30Z", "closed 03-29T00:00 03-29T02:00 03-29T23:00"},
		{"Berlin in spring: a start that does not exist is right after the gap", "Europe/Berlin; 02:30-04:00", "2026-03-28T23:30Z", "closed 03-29T01:00 03-29T02:00 03-30T00:30"},
		{"Berlin in spring: an end that does not exist is right after the gap", "Europe/Berlin; 01:30-02:30", "2026-03-28T23:30Z", "closed 03-29T00:30 03-29T01:00 03-29T23:30"},
		{"Berlin in spring: a window inside the gap does not happen", "Europe/Berlin; 02:10-02:50", "2026-03-28T23:30Z", "closed 03-30T00:10"},
		{"Berlin in autumn: both passes of the repeated hour are inside", "Europe/Berlin; 01:30-03:30", "2026-10-24T22:00Z", "closed 10-24T23:30 10-25T02:30 10-26T00:30"},
		{"Berlin in autumn: a window inside the repeated hour happens twice", "Europe/Berlin; 02:15-02:45", "2026-10-24T22:00Z", "closed 10-25T00:15 10-25T00:45 10-25T01:15 10-25T01:45 10-26T01:15"},
		{"New York in spring: a start that does not exist", "America/New_York; sun 02:30-05:00", "2026-03-08T05:00Z", "closed 03-08T07:00 03-08T09:00 03-15T06:30"},
		{"New York in autumn: both passes", "America/New_York; sun 00:30-02:30", "2026-11-01T03:00Z", "closed 11-01T04:30 11-01T07:30 11-08T05:30"},
		{"Sydney in October: a start that does not exist", "Australia/Sydney; 02:30-04:00", "2026-10-03T14:00Z", "closed 10-03T16:00 10-03T17:00 10-04T15:30"},
		{"Sydney in April: both passes", "Australia/Sydney; 01:30-03:30", "2026-04-04T12:00Z", "closed 04-04T14:30 04-04T17:30 04-05T15:30"},
		{"Lord Howe: half an hour is skipped", "Australia/Lord_Howe; 02:15-03:00", "2026-10-03T12:00Z", "closed 10-03T15:30 10-03T16:00 10-04T15:15"},
		{"overnight across the change", "Europe/Berlin; sat 22:00-06:00", "2026-03-28T12:00Z", "closed 03-28T21:00 03-29T04:00 04-04T20:00"},

		{"cron", "Europe/Berlin; cron 30 9 * * 1-5 for 2h", "2026-11-20T09:00Z", "open 11-20T10:30 11-23T08:30 11-23T10:30"},
		{"cron by name and step", "UTC; cron */30 8 * * mon for 10m", "2026-11-22T09:00Z", "closed 11-23T08:00 11-23T08:10 11-23T08:30 11-23T08:40 11-30T08:00"},
		{"runs that touch are one", "UTC; cron 0 8,9 * * * for 1h", "2026-11-22T07:00Z", "closed 11-22T08:00 11-22T10:00 11-23T08:00"},
		{"a run of several days", "UTC; cron 0 18 * * fri for 60h", "2026-11-22T07:00Z", "open 11-23T06:00 11-27T18:00"},
		{"every minute never closes", "Europe/Berlin; cron * * * * * for 1m", "2026-11-22T07:00Z", "open never"},
		{"a date that never comes", "UTC; cron 0 0 31 2 * for 1h", "2026-11-22T07:00Z", "closed never"},
		{"29 February is found over the years", "UTC; cron 0 0 29 2 * for 1h", "2026-11-22T07:00Z", "closed 02-29T00:00 02-29T01:00"},
		{"day of month or day of week", "UTC; cron 0 0 1 * mon for 1h", "2026-11-24T00:00Z", "closed 11-30T00:00 11-30T01:00 12-01T00:00"},
		{"a run on a holiday does not happen", "UTC; cron 0 9 * * * for 1h; not 2026-11-23", "2026-11-22T12:00Z", "closed 11-24T09:00"},
		{"@daily", "Asia/Kolkata; cron @daily for 1h", "2026-11-22T12:00Z", "closed 11-22T18:30 11-22T19:30"},
		{"Berlin in spring: a run that does not exist starts right after the gap", "Europe/Berlin; cron 30 2 * * * for 45m", "2026-03-28T23:30Z", "closed 03-29T01:00 03-29T01:45 03-30T00:30"},
		{"Berlin in spring: a run lasts its duration", "Europe/Berlin; cron 30 1 * * * for 1h", "2026-03-28T23:30Z", "closed 03-29T00:30 03-29T01:30 03-29T23:30"},
		{"Berlin in autumn: a run in the repeated hour happens twice", "Europe/Berlin; cron 30 2 * * * for 15m", "2026-10-24T22:00Z", "closed 10-25T00:30 10-25T00:45 10-25T01:30 10-25T01:45 10-26T01:30"},
		{"New York in spring", "America/New_York; cron 15 2 * * * for 30m", "2026-03-08T05:00Z", "closed 03-08T07:00 03-08T07:30 03-09T06:15"},
		{"New York in autumn", "America/New_York; cron 30 1 * * * for 2h", "2026-11-01T03:00Z", "closed 11-01T05:30 11-01T08:30 11-02T06:30"},
		{"Sydney in October", "Australia/Sydney; cron 30 2 * * * for 30m", "2026-10-03T14:00Z", "closed 10-03T16:00 10-03T16:30 10-04T15:30"},
		{"windows and cron add up", "UTC; mon 09:00-12:00; cron 0 12 * * * for 1h", "2026-11-23T10:00Z", "open 11-23T13:00 11-24T12:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			calendar, err := schedule.New(scheduletest.Parse(t, c.schedule))
			if err != nil {
				t.Fatal(err)
			}
			at, err := time.Parse("2006-01-02T15:04Z", c.from)
			if err != nil {
				t.Fatal(err)
			}
			words := strings.Fields(c.want)
			open, next := calendar.At(at)
			got := []string{map[bool]string{true: "open", false: "closed"}[open]}
			for len(got) < len(words) {
				if next.IsZero() {
					got = append(got, "never")
					break
				}
				got = append(got, next.Format("01-02T15:04"))
				before := open
				if o, _ := calendar.At(next.Add(-time.Nanosecond)); o != before {
					t.Errorf("just before %s it is not as it was", next)
				}
				if open, next = calendar.At(next); open == before {
					t.Errorf("nothing changed at %s", got[len(got)-1])
				}
			}
			if !slices.Equal(got, words) {
				t.Errorf("got  %s\nwant %s", strings.Join(got, " "), c.want)
			}
		})
	}
}

func TestWhatCannotBeUnderstoodIsRefused(t *testing.T) {
	for _, c := range []struct{ name, schedule, want string }{
		{"nothing", "UTC", "neither windows nor cron"},
		{"an unknown zone", "Europe/Bonn; 09:00-10:00", `timeZone "Europe/Bonn" is not in the time zone database`},
		{"a zone that is a path", "../../etc/passwd; 09:00-10:00", "is not in the time zone database"},
		{"the machine's own zone", "Local; 09:00-10:00", "is not a time zone"},
		{"a start that is no time", "UTC; 9-10:00", `windows[0].start "9" is not a time`},
		{"a start at 24:00", "UTC; 24:00-10:00", "start"},
		{"an end that is no time", "UTC; 09:00-24:01", `windows[0].end "24:01"`},
		{"a minute that does not exist", "UTC; 09:60-24:00", "start"},
		{"digits of another script", "UTC; ٠٩:00-24:00", "start"},
		{"a day that does not exist", "UTC; mon,xyz 09:00-10:00", `"xyz" is none of mon`},
		{"six fields", "UTC; cron 0 0 9 * * * for 1h", "expected exactly 5 fields"},
		{"a zone in cron", "UTC; cron TZ=Europe/Berlin for 1h", "the time zone is given by timeZone"},
		{"another zone in cron", "UTC; cron CRON_TZ=UTC 0 9 * * * for 1h", "the time zone is given by timeZone"},
		{"@every has no fixed times", "UTC; cron @every 1h for 1h", "@every"},
		{"cron without duration", "UTC; cron 0 9 * * * for 0s", "give both"},
		{"a negative duration", "UTC; cron 0 9 * * * for -1h", "at least a second"},
		{"a holiday that is no date", "UTC; 09:00-10:00; not 2026-02-30", "holidays[0]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := scheduletest.Parse(t, c.schedule)
			if _, err := schedule.New(s); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// slowly is the schedule's definition, minute by minute, without any of the
// calendar's arithmetic. It says which of n minutes are open.
func slowly(t testing.TB, s *v1.Schedule, from time.Time, n int) []bool {
	t.Helper()
	zone, err := time.LoadLocation(s.TimeZone)
	if err != nil {
		t.Fatal(err)
	}
	starts := func(days []v1.Day, date time.Time) bool {
		day := v1.Day(strings.ToLower(date.Weekday().String()[:3]))
		return (len(days) == 0 || slices.Contains(days, day)) && !slices.Contains(s.Holidays, date.Format(time.DateOnly))
	}
	var parsed *cron.SpecSchedule
	if s.Cron != "" {
		p, err := cron.ParseStandard(s.Cron)
		if err != nil {
			t.Fatal(err)
		}
		parsed = p.(*cron.SpecSchedule)
		parsed.Location = time.UTC
	}
	wall := func(t time.Time) time.Time {
		_, o := t.In(zone).Zone()
		return t.UTC().Add(time.Duration(o) * time.Second)
	}
	run := func(m time.Time) bool { // whether cron starts at this minute
		// The wall clock runs from the minute before to this one: usually a minute.
		for w := wall(m); ; w = w.Add(-time.Minute) {
			if parsed.Next(w.Add(-time.Second)).Equal(w) && starts(nil, w) {
				return true
			}
			if !w.Add(-time.Minute).After(wall(m.Add(-time.Minute))) {
				return false
			}
		}
	}
	out := make([]bool, n)
	for i := -int(s.Duration.Minutes()); i < n; i++ {
		at := from.Add(time.Duration(i) * time.Minute)
		if parsed != nil && run(at) {
			for k := max(0, i); k < min(n, i+int(s.Duration.Minutes())); k++ {
				out[k] = true
			}
		}
		if i < 0 {
			continue
		}
		local := wall(at)
		clock := local.Format("15:04")
		for _, w := range s.Windows {
			if w.Start < w.End && w.Start <= clock && clock < w.End && starts(w.Days, local) ||
				w.Start >= w.End && w.Start <= clock && starts(w.Days, local) ||
				w.Start >= w.End && clock < w.End && starts(w.Days, local.AddDate(0, 0, -1)) {
				out[i] = true
			}
		}
	}
	return out
}

// FuzzCalendar compares with the definition, minute by minute around the change
// of the clocks, and holds At to what it says about the next change.
func FuzzCalendar(f *testing.F) {
	zones := []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Sydney", "Australia/Lord_Howe", "America/Havana", "Asia/Kathmandu"}
	changes := []string{"2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z", "2026-04-04T16:00:00Z", "2026-10-03T16:00:00Z", "2026-03-08T05:00:00Z", "2026-11-01T05:00:00Z"}
	crons := []string{"", "30 2 * * *", "*/20 * * * *", "0 0 * * sun", "15 1-3 * * *", "59 23 * * *"}
	f.Add([]byte{1, 0, 1, 0, 150, 0, 240, 0, 0})
	f.Add([]byte{2, 3, 2, 0, 75, 0, 75, 1, 30})
	f.Add([]byte{3, 5, 0, 1, 45, 1})
	f.Add([]byte{5, 7, 1, 0, 0, 0, 30, 4, 90, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func(n int) int {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return int(b) % n
		}
		clock := func() string { m := (next(24)*60 + next(60)) % 1440; return fmt.Sprintf("%02d:%02d", m/60, m%60) }
		s := &v1.Schedule{TimeZone: zones[next(len(zones))]}
		change, err := time.Parse(time.RFC3339, changes[next(len(changes))])
		if err != nil {
			t.Fatal(err)
		}
		if s.Cron = crons[next(len(crons))]; s.Cron != "" {
			s.Duration.Duration = time.Duration(1+next(240)) * time.Minute
		}
		for range next(3) {
			w := v1.Window{Start: clock(), End: clock()}
			if w.End == "00:00" {
				w.End = "24:00"
			}
			for range next(3) {
				w.Days = append(w.Days, []v1.Day{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}[next(7)])
			}
			s.Windows = append(s.Windows, w)
		}
		if next(3) == 1 {
			s.Holidays = []string{change.AddDate(0, 0, next(3)-1).Format(time.DateOnly)}
		}
		calendar, err := schedule.New(s)
		if err != nil {
			return
		}
		var open bool
		var changes time.Time
		from := change.Add(-20 * time.Hour)
		for m, want := range slowly(t, s, from, 40*60) {
			at := from.Add(time.Duration(m) * time.Minute)
			got, next := calendar.At(at)
			if m%97 == 0 {
				fresh, err := schedule.New(s) // without memory
				if err != nil {
					t.Fatal(err)
				}
				if known, again := fresh.At(at); got != known || !again.Equal(next) {
					t.Fatalf("%s: %v until %s, remembered as %v until %s", at, known, again, got, next)
				}
			}
			if got != want {
				t.Fatalf("%+v at %s: %v, want %v", s, at, got, want)
			}
			if m > 0 && (got != open) != at.Equal(changes) {
				t.Fatalf("%+v at %s: open %v, before %v, and the change was to come at %s", s, at, got, open, changes)
			}
			if !next.IsZero() && !next.After(at) {
				t.Fatalf("at %s the next change was %s", at, next)
			}
			open, changes = got, next
		}
	})
}
