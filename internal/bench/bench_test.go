package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/bench/load"
)

func TestTheTableShowsWhatWasMissedAndWhy(t *testing.T) {
	rows := []Measurement{
		{Row: Row{"a", "fast", "10 s", "1 s"}, Now: "0.5 s", Ratio: "20 times", OK: true, Note: "seen once"},
		{Row: Row{"b", "slow", "-", "1 s"}, Now: "2 s"},
		{Row: Row{"c", "broken", "-", "1 s"}, Now: "not measured", Error: "no\nserver"},
	}
	var b bytes.Buffer
	if err := WriteTable(&b, rows); err != nil {
		t.Fatal(err)
	}
	want := `        WHAT    V1 MEASURED  REACH  MEASURED NOW  BETTER THAN V1
ok      fast    10 s         1 s    0.5 s         20 times
MISSED  slow    -            1 s    2 s           -
FAILED  broken  -            1 s    not measured  -

a: seen once

c: no
    server
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if missed, failed := Missed(rows); missed != 2 || failed != 1 {
		t.Errorf("%d missed, %d failed", missed, failed)
	}
}

func TestEveryRowOfAnExperimentIsInItsResult(t *testing.T) {
	rows := []Row{{Name: "a", What: "A"}, {Name: "b", What: "B"}}
	got := complete(rows, []Measurement{{Row: Row{Name: "b"}, Now: "1", OK: true}}, errors.New("it broke"))
	want := []Measurement{
		{Row: Row{Name: "a", What: "A"}, Now: "not measured", Error: "it broke"},
		{Row: Row{Name: "b", What: "B"}, Now: "1", OK: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := complete(rows[:1], nil, nil); got[0].OK || got[0].Error == "" {
		t.Errorf("a row that nobody measured passes: %+v", got[0])
	}
}

func TestExperimentsAreChosenByTheirNamesAndTheirRows(t *testing.T) {
	for name, tt := range map[string]struct {
		names, want []string
		err         string
	}{
		"all without a name":                   {nil, []string{"cached-token", "service-principal", "upstream-dead", "many-identities", "assignment", "scale", "first-token"}, ""},
		"one by its name":                      {[]string{"scale"}, []string{"scale"}, ""},
		"one by a row, in the order of all":    {[]string{"clean-2000", "memory"}, []string{"many-identities", "assignment"}, ""},
		"one by its name and one of its rows":  {[]string{"assignment", "assign-200"}, []string{"assignment"}, ""},
		"none by a name that nobody has heard": {[]string{"scale", "speed"}, nil, `no row "speed"`},
	} {
		t.Run(name, func(t *testing.T) {
			chosen, err := Choose(Experiments(), tt.names)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			var got []string
			for _, e := range chosen {
				got = append(got, e.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTheWorstAnswerCounts(t *testing.T) {
	for name, tt := range map[string]struct {
		took time.Duration
		err  error
		good bool
		ok   bool
	}{
		"soon and right":   {time.Millisecond, nil, true, true},
		"right but late":   {2 * time.Second, nil, true, false},
		"soon but wrong":   {time.Millisecond, nil, false, false},
		"no answer at all": {time.Millisecond, context.DeadlineExceeded, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			var s slowest
			s.note("refuses", load.Answer{Status: 503, Took: time.Microsecond}, nil, true)
			s.note("hangs", load.Answer{Status: 503, Took: tt.took}, tt.err, tt.good)
			s.note("refuses", load.Answer{Status: 503, Took: time.Microsecond}, nil, true)
			if m := s.measurement("x"); m.OK != tt.ok || m.Value != tt.took.Seconds() {
				t.Errorf("%+v", m)
			}
		})
	}
}

func TestTheWorkloadsReportIsFound(t *testing.T) {
	r, err := readReport([]byte("attempt 1: 404\n{\"ok\":true,\"firstToken\":\"2026-11-21T06:00:00Z\",\"firstTokenMillis\":12.5}\n"))
	if err != nil || r.FirstTokenMillis != 12.5 {
		t.Errorf("%+v, %v", r, err)
	}
	for text, want := range map[string]string{
		"":                        "printed no report",
		"exec format error\n":     "exec format error",
		"{\"error\":\"refused\"}": "got no token: refused",
	} {
		if _, err := readReport([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestWritesAreCountedPerPod(t *testing.T) {
	got := map[string]int{"azureassignedidentities POST": 200, "azureassignedidentities PATCH": 1200, "azureassignedidentities refused": 3, "events POST": 7}
	m := perPod(map[string]int{"azureassignedidentities POST": 100}, got, 100, os.Getpid())
	if m.Value != 13 || m.OK || !strings.HasPrefix(m.Note, "PATCH 12.00, POST 1.00; besides: events 0.07; refused 0.03; mic holds ") {
		t.Errorf("per pod: %+v", m)
	}
}

func TestBetterIsATimesNumber(t *testing.T) {
	for want, got := range map[string]string{
		"20 times": Times(20*time.Second, time.Second), "1.5 times": Times(3.0, 2.0), "-": Times(time.Second, 0),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestGrowthIsInUnitsOfTheBareServer(t *testing.T) {
	c := load.Comparison{Ours: load.Result{Requests: 100, CPU: 4 * time.Millisecond}, Bare: load.Result{Requests: 200, CPU: 4 * time.Millisecond}}
	busy := load.Comparison{Ours: load.Result{Requests: 100, CPU: 6 * time.Millisecond}, Bare: load.Result{Requests: 200, CPU: 6 * time.Millisecond}}
	if m := growth("x", c, busy, ""); m.Value != 1 || !m.OK {
		t.Errorf("a machine that became slower counts against nmi: %+v", m)
	}
	dear := load.Comparison{Ours: load.Result{Requests: 100, CPU: 5 * time.Millisecond}, Bare: c.Bare}
	if m := growth("x", c, dear, ""); m.Value != 1.25 || m.OK {
		t.Errorf("a quarter more passes: %+v", m)
	}
}
