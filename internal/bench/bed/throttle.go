package bed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// A Throttle is a control group of our own, whose processes get a part of a
// processor as a container with a CPU limit does.
type Throttle struct{ dir string }

// period is that of the kubelet, in microseconds.
const period = 100_000

// NewThrottle makes one for so many thousandths of a processor. It needs root and a
// hierarchy of control groups, of version 1 or 2, that may be written.
func NewThrottle(milli int) (*Throttle, error) {
	const root = "/sys/fs/cgroup"
	quota := strconv.Itoa(milli * period / 1000)
	at, limits := root, map[string]string{"cpu.max": quota + " " + strconv.Itoa(period)}
	if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
		at, limits = root+"/cpu", map[string]string{"cpu.cfs_period_us": strconv.Itoa(period), "cpu.cfs_quota_us": quota}
	}
	t := &Throttle{dir: filepath.Join(at, "lanyard-bench-"+strconv.Itoa(os.Getpid()))}
	if err := os.Mkdir(t.dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a control group: %w", err)
	}
	for name, value := range limits {
		if err := os.WriteFile(filepath.Join(t.dir, name), []byte(value), 0o644); err != nil {
			return nil, errors.Join(fmt.Errorf("setting the limit of a control group: %w", err), t.Close())
		}
	}
	return t, nil
}

// Command is a command line that enters the group and then runs args.
func (t *Throttle) Command(args ...string) []string {
	return append([]string{"/bin/sh", "-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(t.dir, "cgroup.procs")}, args...)
}

// Close removes the group, which has no processes any more.
func (t *Throttle) Close() error { return os.Remove(t.dir) }
