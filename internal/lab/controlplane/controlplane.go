// Package controlplane runs bin/kube server, a whole Kubernetes control plane
// in one process, inside a network namespace.
//
//	Start   ── kube server --dir DIR ... ──> its stderr is progress
//	                                         one line on its stdout means ready
//	Restart ── SIGTERM, then the same again; DIR, with etcd's data and all keys, stays
//	Stop    ── SIGTERM, then SIGKILL; DIR is removed
package controlplane

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// A Config describes a control plane. Kube, Dir and Address must be set.
type Config struct {
	Kube    string // the program with the verb server
	Dir     string // absolute; certificates, kubeconfig files, etcd's data, the log
	Address netip.AddrPort
	Nodes   map[string]netip.Addr // by name; each gets a kubelet's certificates

	Issuer               string   // of ServiceAccount tokens; empty means the server's default
	AuthenticationConfig string   // file; empty means client certificates and ServiceAccounts
	AuthorizationConfig  string   // file; empty means Node and RBAC
	AuditPolicy          string   // file; empty means no audit log
	APIServerArgs        []string // "flag=value" for kube-apiserver
	Args                 []string // more flags of "kube server", for example "--no-scheduler"

	Progress func(step string) // nil means silence
}

// A Starter starts a child process that dies with this one: a netns.NS.
type Starter interface {
	Start(cmd *exec.Cmd) error
}

// A ControlPlane is a running control plane.
type ControlPlane struct {
	cfg     Config
	starter Starter
	ended   chan struct{} // closed when it has ended, and not to be started again
	err     error         // valid after ended

	mu  sync.Mutex // guards run; held while the process is replaced
	run *run

	stopping sync.Once
	stopErr  error
}

// A run is one process of a control plane.
type run struct {
	cmd      *exec.Cmd
	ready    chan struct{}
	done     chan struct{}
	err      error       // valid after done
	replaced atomic.Bool // another follows
}

// Start starts a control plane and returns when the API server, the default
// ServiceAccount and the controllers are there. After an error nothing is left.
func Start(ctx context.Context, starter Starter, cfg Config) (*ControlPlane, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the control plane's folder: %w", err)
	}
	c := &ControlPlane{cfg: cfg, starter: starter, ended: make(chan struct{})}
	r, err := c.launch()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(cfg.Dir))
	}
	c.run = r
	if err := r.wait(ctx); err != nil {
		return nil, errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// launch starts the process.
func (c *ControlPlane) launch() (*run, error) {
	r := &run{ready: make(chan struct{}), done: make(chan struct{})}
	r.cmd = exec.Command(c.cfg.Kube, c.cfg.args()...)
	r.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.cfg.Dir} // no proxy, no kubeconfig of the caller
	stdout, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stderr, err := r.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.starter.Start(r.cmd); err != nil {
		return nil, fmt.Errorf("starting the control plane: %w", err)
	}
	go c.watch(r, stdout, stderr)
	return r, nil
}

// wait returns when the control plane is ready, or why it will not be.
func (r *run) wait(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the control plane: %w", context.Cause(ctx))
	}
}

// end ends the process and waits for it.
func (r *run) end(ctx context.Context) error {
	var err error
	if id, findErr := process.Find(r.cmd.Process.Pid); findErr == nil {
		err = id.End(ctx, 10*time.Second)
	}
	<-r.done
	return err
}

// Restart ends the control plane and starts it again with what is in its folder
// now: objects and certificates stay, and key files that were changed count. It
// returns when the API server answers again. The new process has another PID.
// After an error the control plane has ended.
func (c *ControlPlane) Restart(ctx context.Context) error {
	r, err := c.replace(ctx)
	if err != nil {
		return err
	}
	return r.wait(ctx)
}

func (c *ControlPlane) replace(ctx context.Context) (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run.replaced.Store(true)
	err := c.run.end(context.WithoutCancel(ctx)) // half a restart would be the end
	select {
	case <-c.ended: // before it was known that another follows
		return nil, cmp.Or(c.err, errors.New("the control plane cannot be restarted: it was stopped"))
	default:
	}
	var r *run
	if err == nil {
		r, err = c.launch()
	}
	if err != nil {
		c.err = err
		close(c.ended)
		return nil, err
	}
	c.run = r
	return r, nil
}

func (c Config) args() []string {
	args := []string{
		"server", "--dir", c.Dir, "--bind", c.Address.Addr().String(), "--port", fmt.Sprint(c.Address.Port()), "--die-with-parent",
	}
	for name, ip := range c.Nodes {
		args = append(args, "--node", name+"="+ip.String())
	}
	for flag, value := range map[string]string{
		"--service-account-issuer": c.Issuer,
		"--authentication-config":  c.AuthenticationConfig,
		"--authorization-config":   c.AuthorizationConfig,
		"--audit-policy-file":      c.AuditPolicy,
	} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	for _, a := range c.APIServerArgs {
		args = append(args, "--apiserver-arg", a)
	}
	return append(args, c.Args...)
}

// watch follows the process to its end.
func (c *ControlPlane) watch(r *run, stdout, stderr io.Reader) {
	defer close(r.done)
	var last []string // what it said, for the error
	var both sync.WaitGroup
	both.Go(func() {
		lines := bufio.NewScanner(stdout)
		for first := true; lines.Scan(); first = false {
			if first {
				close(r.ready)
			}
		}
	})
	both.Go(func() {
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			line := lines.Text()
			last = append(last, line)
			last = last[max(0, len(last)-20):]
			if step, ok := strings.CutPrefix(line, "kube server: "); ok && c.cfg.Progress != nil {
				c.cfg.Progress(untimed(step))
			}
		}
		// A line beyond all measure: the pipe must not fill up.
		_, _ = io.Copy(io.Discard, stderr)
	})
	both.Wait()
	if err := r.cmd.Wait(); err != nil {
		last = slices.DeleteFunc(last, func(l string) bool { return l == "" })
		r.err = fmt.Errorf("the control plane ended: %w; the last it said:\n%s", err, strings.Join(last, "\n"))
	}
	if !r.replaced.Load() {
		c.err = r.err
		close(c.ended)
	}
}

// Kubeconfig returns the path of a kubeconfig file: "admin", "kube-proxy",
// "coredns" or "kubelet-NODE". Its server is reachable in the namespace only.
func (c *ControlPlane) Kubeconfig(name string) string {
	return filepath.Join(c.cfg.Dir, name+".kubeconfig")
}

// File returns the path of a file in the pki folder: "ca.crt",
// "kubelet-serving-NODE.crt".
func (c *ControlPlane) File(name string) string { return filepath.Join(c.cfg.Dir, "pki", name) }

// Address is where the API server listens, inside the namespace.
func (c *ControlPlane) Address() string {
	return net.JoinHostPort(c.cfg.Address.Addr().String(), fmt.Sprint(c.cfg.Address.Port()))
}

// PID is the process that is the whole control plane.
func (c *ControlPlane) PID() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run.cmd.Process.Pid
}

// Done is closed when the control plane has ended; a Restart does not end it.
func (c *ControlPlane) Done() <-chan struct{} { return c.ended }

// Err is why it has ended; nil before that and after a Stop.
func (c *ControlPlane) Err() error {
	select {
	case <-c.ended:
		return c.err
	default:
		return nil
	}
}

// Stop ends the control plane and removes its folder. It may be called again.
func (c *ControlPlane) Stop(ctx context.Context) error {
	c.stopping.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.stopErr = errors.Join(c.run.end(ctx), os.RemoveAll(c.cfg.Dir))
	})
	return c.stopErr
}

// untimed is a step of the server without the time since its own start: whoever
// tells of the steps counts from another instant.
func untimed(step string) string {
	step = strings.TrimSpace(step)
	if seconds, rest, ok := strings.Cut(step, " s "); ok && strings.Trim(seconds, "0123456789.") == "" {
		return strings.TrimSpace(rest)
	}
	return step
}
