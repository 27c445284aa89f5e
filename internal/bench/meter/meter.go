// Package meter reads what a process has used so far, and makes one number of
// many samples.
//
// Processor time is the sum that the kernel keeps per process, user and system
// together: beside it the time on the wall depends on whatever else the machine
// does. Its grain is 10 ms, so a measurement lasts seconds.
package meter

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of times in /proc: USER_HZ is 100 on every Linux platform
// that Go knows (proc_pid_stat(5)).
const tick = 10 * time.Millisecond

// CPU returns the processor time that a process has used, with that of its
// threads that have ended.
func CPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("reading the processor time of process %d: %w", pid, err)
	}
	d, err := parseStat(b)
	if err != nil {
		return 0, fmt.Errorf("reading the processor time of process %d: %w", pid, err)
	}
	return d, nil
}

// parseStat reads utime and stime, fields 14 and 15. The second field, the
// command's name, is in parentheses and may itself hold any byte.
func parseStat(b []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, errors.New("its stat names no command")
	}
	fields := strings.Fields(string(b[end+1:]))
	const first, utime, stime = 3, 14, 15
	if len(fields) <= stime-first {
		return 0, fmt.Errorf("its stat has %d fields after the name", len(fields))
	}
	var ticks uint64
	for _, f := range []int{utime, stime} {
		n, err := strconv.ParseUint(fields[f-first], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("field %d of its stat: %w", f, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// Busy returns the processor time that the whole machine has used since it was
// started, waiting and idling apart.
func Busy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("reading the machine's processor time: %w", err)
	}
	return parseBusy(b)
}

// parseBusy reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq (proc_stat(5)); what follows is another machine's.
func parseBusy(b []byte) (time.Duration, error) {
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks uint64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat begins with %q", line)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// Own returns the processor time of this process and of all its children that
// have ended, with theirs.
func Own() (time.Duration, error) {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if err := unix.Getrusage(who, &r); err != nil {
			return 0, fmt.Errorf("reading the processor time of this process: %w", err)
		}
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum, nil
}

// A Memory is what a process holds in physical memory, in bytes.
type Memory struct {
	Resident  int64 // all of it: what v1 was measured by, with pages of the program's file
	Anonymous int64 // heap and stacks: what cannot be dropped and read again
	Peak      int64 // the highest Resident so far
}

// MemoryOf reads the memory of a process.
func MemoryOf(pid int) (Memory, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	m, err := parseStatus(b)
	if err != nil {
		return Memory{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	return m, nil
}

func parseStatus(b []byte) (Memory, error) {
	var m Memory
	want := map[string]*int64{"VmRSS": &m.Resident, "RssAnon": &m.Anonymous, "VmHWM": &m.Peak}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		into := want[name]
		if into == nil {
			continue
		}
		number, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		n, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil {
			return Memory{}, fmt.Errorf("its status has the line %q", strings.TrimSpace(line))
		}
		*into = n << 10
		delete(want, name)
	}
	if len(want) > 0 {
		return Memory{}, errors.New("its status does not tell its memory: it has ended")
	}
	return m, nil
}

// Percentile returns the smallest sample that at least p (0 to 1) of all
// samples do not exceed; zero if there is none. It does not change samples.
func Percentile[T cmp.Ordered](samples []T, p float64) T {
	if len(samples) == 0 {
		var zero T
		return zero
	}
	s := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(p*float64(len(s)))) - 1
	return s[min(max(rank, 0), len(s)-1)]
}

// Median returns the middle sample, or the mean of the two in the middle; zero
// if there is none.
func Median(samples []float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}
