// Package caller tells which pod the process at the other end of a loopback
// connection runs in, from what the kernel of the node says and no process can
// forge:
//
//	peer's address ── /proc/net/tcp{,6} ──> inode of its socket
//	inode          ── /proc/*/fd        ──> the processes that hold the socket
//	processes      ── /proc/*/cgroup    ──> the pod that kubelet put them in
//
// A process of a hostNetwork pod has the node's address, so its address proves
// nothing. /proc must be the node's: hostPID, and the capabilities SYS_PTRACE
// and DAC_READ_SEARCH, without which other processes' descriptors are hidden.
package caller

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Requirements is what a node agent's pod must have for Finder to work.
const Requirements = "hostPID: true and the capabilities SYS_PTRACE and DAC_READ_SEARCH (under AppArmor also the profile Unconfined)"

// A Finder identifies callers.
type Finder struct {
	Proc string // where the node's procfs is; empty means /proc
}

// A HiddenError says that the peer's process cannot be seen.
type HiddenError struct {
	Peer netip.AddrPort
	Why  string
}

func (e *HiddenError) Error() string {
	return fmt.Sprintf("the process behind %s cannot be identified: %s", e.Peer, e.Why)
}

// PodUID returns the UID of the pod whose process holds the socket at peer that
// is connected to local. The error is a *HiddenError if the process cannot be
// seen, is none of a pod, or if processes of several pods hold the socket.
func (f Finder) PodUID(peer, local netip.AddrPort) (string, error) {
	inode, err := f.socket(peer, local)
	if err != nil {
		return "", err
	}
	holders, err := f.holders(inode)
	if err != nil {
		return "", err
	}
	if len(holders) == 0 {
		return "", &HiddenError{peer, "no process that can be seen holds the socket; the agent's pod needs " + Requirements}
	}
	uid := ""
	for _, pid := range holders {
		of, err := f.podOf(pid)
		if err != nil {
			return "", &HiddenError{peer, err.Error()}
		}
		// The number may be another process's by now; the socket tells.
		if !f.holds(pid, inode) {
			return "", &HiddenError{peer, "its process ended meanwhile"}
		}
		if of == "" {
			return "", &HiddenError{peer, fmt.Sprintf("process %d is in no pod's cgroup", pid)}
		}
		if uid != "" && uid != of {
			return "", &HiddenError{peer, "processes of several pods hold the socket"}
		}
		uid = of
	}
	return uid, nil
}

func (f Finder) path(elements ...string) string {
	root := f.Proc
	if root == "" {
		root = "/proc"
	}
	return filepath.Join(append([]string{root}, elements...)...)
}

// established is TCP_ESTABLISHED of the kernel's tcp_states.h, as procfs
// prints it.
const established = "01"

// socket finds the inode of the peer's end. A client may have made it as a
// socket of either family.
func (f Finder) socket(peer, local netip.AddrPort) (string, error) {
	peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	for _, table := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile(f.path("net", table))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return "", fmt.Errorf("reading the kernel's sockets: %w", err)
		}
		from, to := hexAddress(peer, table == "tcp6"), hexAddress(local, table == "tcp6")
		if from == "" {
			continue
		}
		for line := range strings.Lines(string(data)) {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
			fields := strings.Fields(line)
			if len(fields) > 9 && fields[1] == from && fields[2] == to && fields[3] == established && fields[9] != "0" {
				return fields[9], nil
			}
		}
	}
	return "", &HiddenError{peer, "it has no open connection in the node's own network"}
}

// hexAddress is an address as /proc/net/tcp or tcp6 prints it: 32-bit words
// in the machine's byte order. Empty if the table cannot hold it.
func hexAddress(a netip.AddrPort, six bool) string {
	raw := a.Addr().AsSlice()
	switch {
	case six && a.Addr().Is4():
		b := netip.AddrFrom16(a.Addr().As16())
		raw = b.AsSlice()
	case !six && !a.Addr().Is4():
		return ""
	}
	var s strings.Builder
	for i := 0; i+4 <= len(raw); i += 4 {
		fmt.Fprintf(&s, "%08X", binary.NativeEndian.Uint32(raw[i:]))
	}
	fmt.Fprintf(&s, ":%04X", a.Port())
	return s.String()
}

// holders are the processes that have the socket open. Those that cannot be
// read are passed over: they may have ended, and if they hide the holder there
// is none.
func (f Finder) holders(inode string) ([]int, error) {
	processes, err := os.ReadDir(f.path())
	if err != nil {
		return nil, fmt.Errorf("reading the node's processes: %w", err)
	}
	var all []int
	for _, p := range processes {
		if pid, err := strconv.Atoi(p.Name()); err == nil && f.holds(pid, inode) {
			all = append(all, pid)
		}
	}
	return all, nil
}

func (f Finder) holds(pid int, inode string) bool {
	dir := f.path(strconv.Itoa(pid), "fd")
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1) // what was read before the process ended
	want := "socket:[" + inode + "]"
	for _, name := range names {
		if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && to == want {
			return true
		}
	}
	return false
}

func (f Finder) podOf(pid int) (string, error) {
	data, err := os.ReadFile(f.path(strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", fmt.Errorf("its process ended meanwhile: %w", err)
	}
	return PodOfCgroups(string(data)), nil
}
