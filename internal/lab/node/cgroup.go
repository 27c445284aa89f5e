package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A hierarchy is a mounted tree of cgroups.
type hierarchy struct {
	dir string
	v2  bool
}

// hierarchies returns all that the host has: one of version 2, or one for
// each controller of version 1 and perhaps an empty one of version 2.
func hierarchies() ([]hierarchy, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []hierarchy
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		mount, super, ok := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 5 || len(kind) == 0 || !strings.HasPrefix(kind[0], "cgroup") {
			continue
		}
		all = append(all, hierarchy{dir: unescape(fields[4]), v2: kind[0] == "cgroup2"})
	}
	if len(all) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted below /sys/fs/cgroup")
	}
	return all, lines.Err()
}

// makeCgroup makes the cgroup in which the kubelet puts all pods.
func makeCgroup(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	hybrid := slices.ContainsFunc(all, func(h hierarchy) bool { return !h.v2 })
	for _, h := range all {
		dir := filepath.Join(h.dir, name)
		switch {
		case h.v2 && hybrid: // has no controller
			continue
		case h.v2:
			if err := delegate(h.dir); err != nil {
				return err
			}
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the node's cgroup: %w", err)
		}
		if h.v2 {
			if err := delegate(dir); err != nil {
				return err
			}
			continue
		}
		// Version 1 starts with empty sets, in which nothing can run.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			set, err := os.ReadFile(filepath.Join(h.dir, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), set, 0o644)
			}
			if err != nil {
				return fmt.Errorf("preparing the node's cgroup: %w", err)
			}
		}
	}
	return nil
}

// delegate lets the children of a version 2 cgroup use its controllers.
func delegate(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("preparing the node's cgroup: %w", err)
	}
	for c := range strings.FieldsSeq(string(b)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
		// The kubelet itself says which controller it misses.
		if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("preparing the node's cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroup removes the cgroup and all below it, in every hierarchy. The
// processes in it must have ended; the kernel may need a moment to notice.
func removeCgroup(ctx context.Context, name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, h := range all {
		dir := filepath.Join(h.dir, name)
		for {
			err := removeTree(dir)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("removing the node's cgroup: %w", err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("removing the node's cgroup: %w", err)
			case <-tick.C:
			}
		}
	}
	return nil
}

// removeTree removes folders only: a cgroup's files go with it.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
