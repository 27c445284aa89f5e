package binding_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/schedule/scheduletest"
)

func instant(t testing.TB, s string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02T15:04Z", s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// request reads "name binding 30m [Approved|Denied|Revoked INSTANT]".
func request(t testing.TB, text string, edit ...func(*lanyard.AccessRequest)) *lanyard.AccessRequest {
	t.Helper()
	words := strings.Fields(text)
	r := &lanyard.AccessRequest{}
	r.Namespace, r.Name, r.Spec.Binding = "a", words[0], words[1]
	r.Spec.Requester.Username = "alice"
	d, err := time.ParseDuration(words[2])
	if err != nil {
		t.Fatal(err)
	}
	r.Spec.Duration = metav1.Duration{Duration: d}
	if len(words) > 3 {
		r.Status.Decision = &lanyard.Decision{Verdict: lanyard.Verdict(words[3]), By: "bob", At: metav1.NewTime(instant(t, words[4]))}
	}
	for _, e := range edit {
		e(r)
	}
	return r
}

func TestWhenABindingIsOpen(t *testing.T) {
	type spec = v1.AzureIdentityBindingSpec
	type requests = []*lanyard.AccessRequest
	at := func(s string) *metav1.Time { m := metav1.NewTime(instant(t, s)); return &m }
	office := scheduletest.Parse(t, "Europe/Berlin; mon,tue,wed,thu,fri 09:00-17:00; not 2026-11-23")
	minutes := func(n time.Duration) *metav1.Duration { return &metav1.Duration{Duration: n * time.Minute} }
	gone := metav1.Now()
	for _, c := range []struct {
		name     string
		spec     spec
		requests requests
		now      string
		closes   string         // "never" if it stays open; empty if it is refused
		reason   binding.Reason // of the refusal
		text     string         // part of it
		opens    string         // empty if not foreseen
	}{
		{"notBefore is the first instant", spec{NotBefore: at("2026-11-21T12:00Z")}, nil, "2026-11-21T12:00Z", "never", "", "", ""},
		{"before notBefore", spec{NotBefore: at("2026-11-21T12:00Z")}, nil, "2026-11-21T11:59Z", "", binding.NotOpen, "AzureIdentityBinding a/b is not open now: it opens 2026-11-21 12:00 UTC, in 60 s", "2026-11-21T12:00Z"},
		{"before notAfter", spec{NotAfter: at("2026-11-21T12:00Z")}, nil, "2026-11-21T11:59Z", "2026-11-21T12:00Z", "", "", ""},
		{"notAfter is outside", spec{NotAfter: at("2026-11-21T12:00Z")}, nil, "2026-11-21T12:00Z", "", binding.NotOpen, "is open no more: its notAfter was 2026-11-21 12:00 UTC", ""},
		{"a term that ends before it begins", spec{NotBefore: at("2026-11-22T12:00Z"), NotAfter: at("2026-11-21T12:00Z")}, nil, "2026-11-20T12:00Z", "", binding.NotOpen, "open no more", ""},
		{"inside the schedule", spec{Schedule: office}, nil, "2026-11-20T10:00Z", "2026-11-20T16:00Z", "", "", ""},
		{"outside the schedule", spec{Schedule: office}, nil, "2026-11-22T00:00Z", "", binding.NotOpen, "opens 2026-11-24 09:00 Europe/Berlin, in 56 h", "2026-11-24T08:00Z"},
		{"the schedule opens, but notBefore is later", spec{Schedule: office, NotBefore: at("2026-11-25T12:00Z")}, nil, "2026-11-22T00:00Z", "", binding.NotOpen, "opens 2026-11-25 13:00 Europe/Berlin, in 3 days", "2026-11-25T12:00Z"},
		{"notBefore falls outside the schedule", spec{Schedule: office, NotBefore: at("2026-11-25T20:00Z")}, nil, "2026-11-22T00:00Z", "", binding.NotOpen, "opens 2026-11-26 09:00", "2026-11-26T08:00Z"},
		{"the schedule opens only after notAfter", spec{Schedule: office, NotAfter: at("2026-11-23T20:00Z")}, nil, "2026-11-22T00:00Z", "", binding.NotOpen, "never let it open", ""},
		{"notAfter inside the schedule", spec{Schedule: office, NotAfter: at("2026-11-20T12:00Z")}, nil, "2026-11-20T10:00Z", "2026-11-20T12:00Z", "", "", ""},
		{"a schedule that never opens", spec{Schedule: scheduletest.Parse(t, "UTC; cron 0 0 30 2 * for 1h")}, nil, "2026-11-20T10:00Z", "", binding.NotOpen, "never let it open", ""},

		{"nobody has asked", spec{Access: v1.AccessOnRequest}, nil, "2026-11-20T10:00Z", "", binding.AwaitingApproval, `nobody has asked: ask with "kubectl lanyard access request b -n a --reason WHY --duration 1h"`, ""},
		{"an access that is not known is no access", spec{Access: "Sometimes"}, nil, "2026-11-20T10:00Z", "", binding.AwaitingApproval, "", ""},
		{"a request waits", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m")}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, `AccessRequest a/r of "alice" for 30m0s waits for a decision: whoever holds the verb approve runs "kubectl lanyard approve r -n a"`, ""},
		{"a request for another binding", spec{Access: v1.AccessOnRequest}, requests{request(t, "r c 30m Approved 2026-11-20T09:50Z")}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, "nobody has asked", ""},
		{"a request of another namespace", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Approved 2026-11-20T09:50Z", func(r *lanyard.AccessRequest) { r.Namespace = "z" })}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, "nobody has asked", ""},
		{"a request for this pod", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Approved 2026-11-20T09:50Z", func(r *lanyard.AccessRequest) { r.Spec.Pod = "p" })}, "2026-11-20T10:00Z", "2026-11-20T10:20Z", "", "", ""},
		{"a request for another pod", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Approved 2026-11-20T09:50Z", func(r *lanyard.AccessRequest) { r.Spec.Pod = "q" })}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, "", ""},
		{"approved", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Approved 2026-11-20T10:00Z")}, "2026-11-20T10:00Z", "2026-11-20T10:30Z", "", "", ""},
		{"the approval has ended", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Approved 2026-11-20T09:30Z")}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, "the approval of AccessRequest a/r ended 2026-11-20 10:00 UTC", ""},
		{"an approval for later", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Approved 2026-11-20T12:00Z")}, "2026-11-20T10:00Z", "", binding.NotOpen, "in 2 h", "2026-11-20T12:00Z"},
		{"approvals that overlap add up", spec{Access: v1.AccessOnRequest}, requests{request(t, "s b 30m Approved 2026-11-20T10:15Z"), request(t, "r b 30m Approved 2026-11-20T09:50Z")}, "2026-11-20T10:00Z", "2026-11-20T10:45Z", "", "", ""},
		{"denied", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Denied 2026-11-20T09:50Z")}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, `AccessRequest a/r was denied by "bob": ask with`, ""},
		{"revoked", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Revoked 2026-11-20T09:50Z")}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, `was revoked by "bob"`, ""},
		{"deleted", spec{Access: v1.AccessOnRequest}, requests{request(t, "r b 30m Approved 2026-11-20T09:50Z", func(r *lanyard.AccessRequest) { r.DeletionTimestamp = &gone })}, "2026-11-20T10:00Z", "", binding.AwaitingApproval, "nobody has asked", ""},
		{"an approval is no way around the schedule", spec{Access: v1.AccessOnRequest, Schedule: office}, requests{request(t, "r b 96h Approved 2026-11-21T09:50Z")}, "2026-11-21T10:00Z", "", binding.NotOpen, "opens 2026-11-24 09:00", "2026-11-24T08:00Z"},
		{"an approval that ends before the schedule opens", spec{Access: v1.AccessOnRequest, Schedule: office}, requests{request(t, "r b 1h Approved 2026-11-21T09:50Z")}, "2026-11-21T10:00Z", "", binding.AwaitingApproval, "", ""},

		{"enough time is left", spec{Schedule: office, MinimumRemaining: minutes(60)}, nil, "2026-11-20T15:00Z", "2026-11-20T16:00Z", "", "", ""},
		{"too little time is left", spec{Schedule: office, MinimumRemaining: minutes(60)}, nil, "2026-11-20T15:01Z", "", binding.WindowTooShort, "closes 2026-11-20 17:00 Europe/Berlin, in 59 min, sooner than its minimumRemaining of 1h0m0s, and a token would outlive that; it opens again 2026-11-24 09:00 Europe/Berlin, in 3 days", "2026-11-24T08:00Z"},
		{"what never closes has time enough", spec{MinimumRemaining: minutes(60)}, nil, "2026-11-20T15:01Z", "never", "", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bind("a/b", "l", "i")
			b.Spec.NotBefore, b.Spec.NotAfter, b.Spec.Schedule, b.Spec.Access, b.Spec.MinimumRemaining = c.spec.NotBefore, c.spec.NotAfter, c.spec.Schedule, c.spec.Access, c.spec.MinimumRemaining
			w := world(ids{identity("a/i")}, bindings{b})
			w.Managed, w.Requests, w.Calendars = true, c.requests, &binding.Calendars{}
			p, now := pod("a/p", "l"), instant(t, c.now)
			word := func(at time.Time, zero string) string {
				if at.IsZero() {
					return zero
				}
				return at.UTC().Format("2006-01-02T15:04Z")
			}
			bound, _ := binding.Of(p, w)
			active, next := binding.Active(bound, now)
			got, err := binding.Select(p, w, binding.Selector{}, now)
			all, refusal := binding.Candidates(p, w, now)
			if c.closes != "" {
				if err != nil || refusal != nil {
					t.Fatal(err, refusal)
				}
				for _, b := range []binding.Bound{got, all[0], active[0]} {
					if closes := word(b.Closes, "never"); closes != c.closes {
						t.Errorf("closes %s", closes)
					}
				}
				if word(next, "never") != c.closes {
					t.Errorf("Active says %v", next)
				}
				return
			}
			var r *binding.Refusal
			if !errors.As(err, &r) || refusal == nil || r.Text != refusal.Text {
				t.Fatalf("got %v and %v", err, refusal)
			}
			if r.Reason != c.reason || !strings.Contains(r.Text, c.text) || word(r.Opens, "") != c.opens || r.Binding != b {
				t.Errorf("got %s: %s\nopens %s", r.Reason, r.Text, word(r.Opens, ""))
			}
			if o := binding.OpeningOf(b, w, now); c.reason != binding.WindowTooShort && !strings.Contains(c.name, "another pod") && (o.Open || o.Reason != c.reason || !strings.Contains(o.Text, c.text)) {
				t.Errorf("OpeningOf: %+v", o)
			}
			if short := c.reason == binding.WindowTooShort; (len(active) > 0) != short || !short && word(next, "") != c.opens {
				t.Errorf("Active: %v until %v", active, next)
			}
		})
	}
}

func TestOfSeveralBindingsOfAnIdentityOneCounts(t *testing.T) {
	one, two := bind("a/one", "l", "i"), bind("a/two", "l", "i")
	one.Spec.Schedule, two.Spec.Schedule = scheduletest.Parse(t, "UTC; 08:00-12:00"), scheduletest.Parse(t, "UTC; 10:00-14:00")
	w := world(ids{identity("a/i")}, bindings{one, two})
	w.Managed = true
	p := pod("a/p", "l")
	bound, _ := binding.Of(p, w)
	if len(bound) != 2 {
		t.Fatalf("Of returns %d bindings: each has times of its own", len(bound))
	}
	var got []string
	for at := instant(t, "2026-11-20T00:00Z"); len(got) < 5; {
		active, next := binding.Active(bound, at)
		word := "none"
		if len(active) > 1 {
			t.Fatalf("the identity is active %d times", len(active))
		}
		if len(active) == 1 {
			word = active[0].Binding.Name
			if sel, err := binding.Select(p, w, binding.Selector{}, at); err != nil || sel.Binding != active[0].Binding || !sel.Closes.Equal(active[0].Closes) {
				t.Errorf("Select: %v, %v", sel, err)
			}
		} else if _, err := binding.Select(p, w, binding.Selector{}, at); err == nil {
			t.Error("Select grants what is not active")
		}
		got = append(got, at.Format("15:04 ")+word)
		at = next
	}
	if diff := cmp.Diff([]string{"00:00 none", "08:00 one", "10:00 two", "12:00 two", "14:00 none"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestABindingThatIsAlwaysOpenWins(t *testing.T) {
	for _, names := range [][2]string{{"a/one", "a/two"}, {"a/two", "a/one"}} {
		timed, free := bind(names[0], "l", "i"), bind(names[1], "l", "i")
		timed.Spec.Schedule = scheduletest.Parse(t, "UTC; 08:00-12:00")
		w := world(ids{identity("a/i"), identity("a/j")}, bindings{timed, free, bind("a/x", "l", "j")})
		w.Managed = true
		p := pod("a/p", "l")
		bound, _ := binding.Of(p, w)
		if len(bound) != 2 {
			t.Errorf("Of returns %d", len(bound))
		}
		for _, at := range []string{"2026-11-20T07:00Z", "2026-11-20T09:00Z"} {
			got, err := binding.Select(p, w, binding.Selector{ClientID: "client-i"}, instant(t, at))
			if err != nil || got.Binding != free || !got.Closes.IsZero() {
				t.Errorf("at %s: %v, %v", at, got, err)
			}
		}
	}
}

func TestCalendarsFollowTheBinding(t *testing.T) {
	b := bind("a/b", "l", "i")
	w := world(ids{identity("a/i")}, bindings{b})
	w.Managed, w.Calendars = true, &binding.Calendars{}
	at := instant(t, "2026-11-20T09:00Z")
	for _, c := range []struct {
		schedule string
		want     binding.Reason
	}{
		{"UTC; 08:00-12:00", ""}, {"UTC; 10:00-12:00", binding.NotOpen}, {"Europe/Bonn; 08:00-12:00", binding.InvalidSchedule},
		{"UTC; 08:00-12:00; not 2026-11-20", binding.NotOpen}, {"UTC; fri 08:00-12:00", ""}, {"UTC; cron 0 8 * * * for 2h", ""}, {"UTC; cron 0 8 * * * for 1h", binding.NotOpen},
	} {
		// In place, as no informer would: the memory must not be fooled even so.
		next := scheduletest.Parse(t, c.schedule)
		if b.Spec.Schedule == nil {
			b.Spec.Schedule = next
		} else {
			*b.Spec.Schedule = *next
		}
		var wait sync.WaitGroup
		for range 4 {
			wait.Go(func() {
				_, err := binding.Select(pod("a/p", "l"), w, binding.Selector{}, at)
				var reason binding.Reason
				if r, ok := err.(*binding.Refusal); ok {
					reason = r.Reason
				}
				if reason != c.want {
					t.Errorf("%s: %v", c.schedule, err)
				}
			})
		}
		wait.Wait()
	}
}

func TestARequestForAClosedIdentityIsToldWhenItOpens(t *testing.T) {
	b := bind("a/one", "l", "i")
	b.Spec.Schedule = scheduletest.Parse(t, "UTC; 08:00-12:00")
	w := world(ids{identity("a/i"), identity("a/j")}, bindings{b, bind("a/two", "l", "j")})
	w.Managed = true
	_, err := binding.Select(pod("a/p", "l"), w, binding.Selector{ClientID: "client-i"}, instant(t, "2026-11-20T07:00Z"))
	if r, ok := err.(*binding.Refusal); !ok || r.Reason != binding.NotOpen || r.Identity.Name != "i" {
		t.Errorf("got %v", err)
	}
	if got, err := binding.Select(pod("a/p", "l"), w, binding.Selector{}, instant(t, "2026-11-20T07:00Z")); err != nil || got.Identity.Name != "j" {
		t.Errorf("without a name: %v, %v", got.Identity, err)
	}
}

func TestAutomaticApproval(t *testing.T) {
	rule := func(max time.Duration, users, groups []string) v1.AutomaticApproval {
		return v1.AutomaticApproval{Users: users, Groups: groups, MaxDuration: metav1.Duration{Duration: max}}
	}
	sre := rule(time.Hour, []string{"alice"}, []string{"sre"})
	for _, c := range []struct {
		name  string
		rules []v1.AutomaticApproval
		edit  func(*lanyard.AccessRequest)
		want  bool
	}{
		{"a user that is named", []v1.AutomaticApproval{sre}, func(*lanyard.AccessRequest) {}, true},
		{"a member of a group", []v1.AutomaticApproval{sre}, func(r *lanyard.AccessRequest) {
			r.Spec.Requester = lanyard.Requester{Username: "carol", Groups: []string{"dev", "sre"}}
		}, true},
		{"somebody else", []v1.AutomaticApproval{sre}, func(r *lanyard.AccessRequest) { r.Spec.Requester.Username = "carol" }, false},
		{"exactly the longest duration", []v1.AutomaticApproval{sre}, func(r *lanyard.AccessRequest) { r.Spec.Duration.Duration = time.Hour }, true},
		{"longer", []v1.AutomaticApproval{sre}, func(r *lanyard.AccessRequest) { r.Spec.Duration.Duration = time.Hour + 1 }, false},
		{"another rule allows longer", []v1.AutomaticApproval{sre, rule(2*time.Hour, nil, []string{"x"}), rule(2*time.Hour, []string{"alice"}, nil)}, func(r *lanyard.AccessRequest) { r.Spec.Duration.Duration = 2 * time.Hour }, true},
		{"no rule", nil, func(*lanyard.AccessRequest) {}, false},
		{"a rule for nobody", []v1.AutomaticApproval{rule(time.Hour, []string{""}, []string{""})}, func(r *lanyard.AccessRequest) { r.Spec.Requester = lanyard.Requester{Groups: []string{""}} }, false},
		{"what was denied stays so", []v1.AutomaticApproval{sre}, func(r *lanyard.AccessRequest) { r.Status.Decision = &lanyard.Decision{Verdict: lanyard.Denied} }, false},
		{"another binding", []v1.AutomaticApproval{sre}, func(r *lanyard.AccessRequest) { r.Spec.Binding = "c" }, false},
		{"another namespace", []v1.AutomaticApproval{sre}, func(r *lanyard.AccessRequest) { r.Namespace = "z" }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bind("a/b", "l", "i")
			b.Spec.Access, b.Spec.Approval = v1.AccessOnRequest, &v1.Approval{Automatic: c.rules}
			if got := binding.Automatic(b, request(t, "r b 30m", c.edit)); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// FuzzActive builds bindings with every limit. Whatever they are: until the
// instant that Active names nothing changes, there something does, and what is
// granted is inside every limit.
func FuzzActive(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	f.Add([]byte{0, 1, 0, 1, 0, 1, 0, 1, 9, 200, 17, 3, 44, 1, 1, 1, 2, 90})
	schedules := []string{"UTC; 09:00-17:00", "Europe/Berlin; sat,sun 22:00-06:00", "UTC; cron */30 * * * * for 10m", "Europe/Bonn; 09:00-10:00"}
	f.Fuzz(func(t *testing.T, data []byte) {
		next := func(n int) int {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return int(b) % n
		}
		epoch := instant(t, "2026-10-24T12:00Z")
		minute := func() time.Time { return epoch.Add(time.Duration(next(200)*next(30)) * time.Minute) }
		w := world(ids{identity("a/i"), identity("a/j")}, nil)
		w.Managed, w.Calendars = next(4) > 0, &binding.Calendars{}
		for _, name := range []string{"a/b", "a/c"} {
			b := bind(name, "l", []string{"i", "j"}[next(2)])
			if next(3) == 0 {
				b.Spec.NotBefore = &metav1.Time{Time: minute()}
			}
			if next(3) == 0 {
				b.Spec.NotAfter = &metav1.Time{Time: minute()}
			}
			if next(2) == 0 {
				b.Spec.Schedule = scheduletest.Parse(t, schedules[next(len(schedules))])
			}
			if next(3) == 0 {
				b.Spec.Access = v1.AccessOnRequest
			}
			w.Bindings = append(w.Bindings, b)
		}
		for range next(4) {
			r := request(t, "r "+[]string{"b", "c"}[next(2)]+" "+(time.Duration(next(240))*time.Minute).String())
			if next(4) > 0 {
				r.Status.Decision = &lanyard.Decision{Verdict: []lanyard.Verdict{lanyard.Approved, lanyard.Revoked}[next(5)/4], At: metav1.NewTime(minute())}
			}
			w.Requests = append(w.Requests, r)
		}
		p := pod("a/p", "l")
		bound, _ := binding.Of(p, w)
		describe := func(active []binding.Bound) string {
			var s []string
			for _, b := range active {
				s = append(s, b.Binding.Name+"/"+b.Identity.Name+" until "+b.Closes.String())
			}
			return strings.Join(s, " ")
		}
		at := minute()
		active, changes := binding.Active(bound, at)
		for m := range 36 * 60 {
			before, expected := describe(active), changes
			at = at.Add(time.Minute)
			active, changes = binding.Active(bound, at)
			if got := describe(active); got != before && (expected.IsZero() || at.Before(expected)) {
				t.Fatalf("at %s it became %q, was %q, and nothing was to change before %s", at, got, before, expected)
			}
			if !expected.IsZero() && at.After(expected.Add(time.Minute)) {
				t.Fatalf("at %s the change of %s still had not come", at, expected)
			}
			if !changes.IsZero() && !changes.After(at) {
				t.Fatalf("at %s the next change was %s", at, changes)
			}
			if m%7 != 0 {
				continue
			}
			got, err := binding.Select(p, w, binding.Selector{}, at)
			if w.Managed && (err == nil) != (len(active) > 0) || !w.Managed && err == nil {
				t.Fatalf("at %s: Select %v, Active %q", at, err, describe(active))
			}
			if err != nil {
				continue
			}
			s := got.Binding.Spec
			if s.NotBefore != nil && at.Before(s.NotBefore.Time) || s.NotAfter != nil && !at.Before(s.NotAfter.Time) || s.Schedule != nil && s.Schedule.TimeZone == "Europe/Bonn" {
				t.Fatalf("at %s granted outside of %+v", at, s)
			}
			if s.Access == v1.AccessOnRequest {
				ok := false
				for _, r := range w.Requests {
					from, to, granted := binding.Granted(r)
					ok = ok || granted && r.Spec.Binding == got.Binding.Name && !at.Before(from) && at.Before(to)
				}
				if !ok {
					t.Fatalf("at %s granted without an approval", at)
				}
			}
		}
	})
}

func TestAScheduleThatCannotBeUnderstoodNeverOpens(t *testing.T) {
	b := bind("a/b", "l", "i")
	b.Spec.Schedule = scheduletest.Parse(t, "Europe/Bonn; 09:00-10:00")
	w := world(ids{identity("a/i")}, bindings{b})
	w.Managed = true
	_, err := binding.Select(pod("a/p", "l"), w, binding.Selector{}, time.Unix(0, 0))
	if r, ok := err.(*binding.Refusal); !ok || r.Reason != binding.InvalidSchedule || !strings.Contains(r.Text, "a/b never opens: spec.schedule: ") {
		t.Errorf("got %v", err)
	}
	if open, next := binding.Active([]binding.Bound{{Binding: b, Identity: identity("a/i")}}, time.Unix(0, 0)); len(open) != 0 || !next.IsZero() {
		t.Errorf("open: %v until %v", open, next)
	}
}
