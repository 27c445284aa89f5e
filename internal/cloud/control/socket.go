package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
)

const socketName = "control.sock"

// A door is the listener: the address of a Unix socket has room for 108 bytes, so the directory is named by a
// descriptor.
type door struct {
	net.Listener
	dir *os.File
}

// Listen opens the door in a cloud's state directory. The caller has that directory for itself: a socket that is there
// was left by a process that is gone.
func Listen(ctx context.Context, stateDir string) (net.Listener, error) {
	dir, err := os.Open(stateDir)
	if err != nil {
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	at := filepath.Join(stateDir, socketName)
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("removing an old control socket: %w", err), dir.Close())
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the control socket: %w", err), dir.Close())
	}
	if err := os.Chmod(at, 0o600); err != nil {
		return nil, errors.Join(err, l.Close(), dir.Close())
	}
	return &door{l, dir}, nil
}

// Accept lets in root and the user whom this process runs as; others are cut off.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(c); err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return c, nil
		}
		_ = c.Close() // a stranger learns nothing
	}
}

func (d *door) Close() error { return errors.Join(d.Listener.Close(), d.dir.Close()) }

// peer is the user at the other end.
func peer(c net.Conn) (uid uint32, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("%T is no Unix socket", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credErr error
	err = raw.Control(func(fd uintptr) {
		var cred *syscall.Ucred
		if cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); credErr == nil {
			uid = cred.Uid
		}
	})
	return uid, errors.Join(err, credErr)
}

// A Client talks to a running cloud.
type Client struct {
	StateDir string // of the cloud, or of a lab
}

// ErrNotRunning means that no cloud runs on a state directory.
var ErrNotRunning = errors.New("no local cloud is running")

// Faults lists the faults in force.
func (c *Client) Faults(ctx context.Context) (rules []fault.Rule, err error) {
	return rules, c.do(ctx, http.MethodGet, "/faults", nil, &rules)
}

// AddFault puts a fault in force.
func (c *Client) AddFault(ctx context.Context, r fault.Rule) (added fault.Rule, err error) {
	return added, c.do(ctx, http.MethodPost, "/faults", r, &added)
}

// ClearFaults ends faults, all if no id is given, and returns how many.
func (c *Client) ClearFaults(ctx context.Context, ids ...string) (int, error) {
	var cleared struct{ Cleared int }
	err := c.do(ctx, http.MethodDelete, "/faults?"+url.Values{"id": ids}.Encode(), nil, &cleared)
	return cleared.Cleared, err
}

// Clock reads the cloud's clock.
func (c *Client) Clock(ctx context.Context) (state ClockState, err error) {
	return state, c.do(ctx, http.MethodGet, "/clock", nil, &state)
}

// SetClock changes the cloud's clock: resets it, then stops it or lets it go (nil leaves that), then shifts it.
func (c *Client) SetClock(ctx context.Context, reset bool, freeze *bool, shift fault.Duration) (state ClockState, err error) {
	return state, c.do(ctx, http.MethodPost, "/clock", clockChange{Reset: reset, Freeze: freeze, Shift: shift}, &state)
}

// Settings reads the settings.
func (c *Client) Settings(ctx context.Context) (s Settings, err error) {
	return s, c.do(ctx, http.MethodGet, "/settings", nil, &s)
}

// SetSettings replaces the settings.
func (c *Client) SetSettings(ctx context.Context, s Settings) error {
	return c.do(ctx, http.MethodPut, "/settings", s, nil)
}

// Log calls f with the last entries of the request log (all that are in memory if tail is negative), and with follow
// with all that come, until ctx ends or f fails.
func (c *Client) Log(ctx context.Context, tail int, follow bool, f func(journal.Entry) error) error {
	q := url.Values{"tail": {strconv.Itoa(tail)}}
	if follow {
		q.Set("follow", "")
	}
	resp, closeIdle, err := c.send(ctx, http.MethodGet, "/log?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer closeIdle()
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var e journal.Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("reading the request log: %w", err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("reading the request log: %w", err)
	}
	return ctx.Err()
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	resp, closeIdle, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer closeIdle()
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, func(), error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, body)
	if err != nil {
		return nil, nil, err
	}
	t := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }}
	resp, err := t.RoundTrip(req)
	if err != nil {
		t.CloseIdleConnections()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		return nil, nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, t.CloseIdleConnections, nil
	}
	defer t.CloseIdleConnections()
	defer resp.Body.Close()
	const limit = 4096
	text, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	return nil, nil, errors.Join(errors.New(strings.TrimSpace(string(text))), err)
}

// dial finds the socket of a cloud or, one directory below, of a lab.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	for _, dir := range []string{c.StateDir, filepath.Join(c.StateDir, "cloud")} {
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("the state directory belongs to another user: %w", err)
		}
		if err != nil {
			continue
		}
		conn, err := new(net.Dialer).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", f.Fd(), socketName))
		_ = f.Close() // it was only a name
		if err == nil {
			return conn, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			return nil, fmt.Errorf("the cloud on %s belongs to another user: %w", dir, err)
		}
	}
	return nil, fmt.Errorf("%w on %s: name the state directory of a cloud or a lab with --state", ErrNotRunning, c.StateDir)
}
