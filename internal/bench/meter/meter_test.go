package meter

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestProcessorTimeIsFound(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 9 0 77"
	for name, tt := range map[string]struct {
		stat string
		want time.Duration
		err  string
	}{
		"of an ordinary program":              {"4711 (nmi)" + tail, 1750 * time.Millisecond, ""},
		"of a program with a misleading name": {"4711 (a) S 9 9 (b) x)" + tail, 1750 * time.Millisecond, ""},
		"not in a line that was cut":          {"4711 (nmi) S 1 2", 0, "3 fields"},
		"not in a line without a name":        {"4711", 0, "names no command"},
		"not where a number is none":          {strings.Replace("4711 (nmi)"+tail, "150", "x", 1), 0, "field 14"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseStat([]byte(tt.stat))
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want one with %q", err, tt.err)
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestMemoryIsFound(t *testing.T) {
	got, err := parseStatus([]byte("Name:\tnmi\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nRssAnon:\t     512 kB\nThreads:\t9\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Memory{Resident: 1 << 20, Anonymous: 512 << 10, Peak: 2 << 20}, got); diff != "" {
		t.Error(diff)
	}
	for name, text := range map[string]string{
		"a process that has ended has none": "Name:\tnmi\nState:\tZ (zombie)\n",
		"a unit that is not known":          "VmHWM:\t1 kB\nVmRSS:\t1 MB\nRssAnon:\t1 kB\n",
	} {
		if m, err := parseStatus([]byte(text)); err == nil {
			t.Errorf("%s: got %+v", name, m)
		}
	}
}

func TestThisProcessCanBeMeasured(t *testing.T) {
	m, err := MemoryOf(os.Getpid())
	if err != nil || m.Resident < m.Anonymous || m.Anonymous <= 0 || m.Peak < m.Resident {
		t.Errorf("memory %+v, %v", m, err)
	}
	// It burns more than two ticks, which must show.
	before, err := CPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for sum := 0; ; sum++ {
		now, err := CPU(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now-before > 2*tick {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the processor time stays at %s", now)
		}
	}
}

func TestPercentiles(t *testing.T) {
	ten := []int{7, 1, 10, 3, 5, 2, 9, 4, 8, 6}
	for _, tt := range []struct {
		p    float64
		want int
	}{{0, 1}, {0.1, 1}, {0.5, 5}, {0.51, 6}, {0.99, 10}, {1, 10}} {
		if got := Percentile(ten, tt.p); got != tt.want {
			t.Errorf("p%g of 1..10 is %d, want %d", 100*tt.p, got, tt.want)
		}
	}
	if ten[0] != 7 {
		t.Error("the samples were sorted in place")
	}
	if got := Percentile([]int(nil), 0.5); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
	for _, tt := range []struct {
		samples []float64
		want    float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 2, 9}, 3}} {
		if got := Median(tt.samples); got != tt.want {
			t.Errorf("the median of %v is %g, want %g", tt.samples, got, tt.want)
		}
	}
}

func TestTheMachinesProcessorTimeIsFound(t *testing.T) {
	got, err := parseBusy([]byte("cpu  100 20 30 9000 800 4 6 77 0 0\ncpu0 1 1 1 1 1 1 1\n"))
	if err != nil || got != 1600*time.Millisecond {
		t.Errorf("%s, %v", got, err)
	}
	for _, text := range []string{"", "cpu 1 2", "cpu0 1 2 3 4 5 6 7", "cpu x 2 3 4 5 6 7"} {
		if got, err := parseBusy([]byte(text)); err == nil {
			t.Errorf("%q is %s", text, got)
		}
	}
	busy, err := Busy()
	if err != nil {
		t.Fatal(err)
	}
	own, err := Own()
	if err != nil || own <= 0 || own > busy {
		t.Errorf("this process has used %s of %s, %v", own, busy, err)
	}
}
