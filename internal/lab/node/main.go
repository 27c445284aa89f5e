package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// searchPath is where the daemons find runc, nft and each other.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A daemon that ends sooner than this after its start is not started again.
const tooSoon = 10 * time.Second

// An event is what the first process tells Start, one JSON value each.
type event struct {
	Ready  string `json:"ready,omitempty"`  // "containerd", then "kubelet"
	Failed string `json:"failed,omitempty"` // why the node ends
	Log    string `json:"log,omitempty"`    // the file that tells more
}

// Main is the first process of a node. Start runs it; by itself it is of no
// use. It reads a Config and then a Join from in, tells on out what is ready,
// and ends the node when in ends.
func Main(ctx context.Context, in io.Reader, out io.Writer) error {
	if os.Getpid() != 1 {
		return errors.New("this is the first process of a lab's node and is started by the lab itself")
	}
	tell := json.NewEncoder(out)
	err := run(ctx, json.NewDecoder(in), tell)
	if err == nil {
		return nil
	}
	e := event{Failed: err.Error()}
	if f := new(failure); errors.As(err, &f) {
		e.Log = f.log
	}
	return errors.Join(err, tell.Encode(e))
}

func run(ctx context.Context, in *json.Decoder, tell *json.Encoder) error {
	var c Config
	if err := in.Decode(&c); err != nil {
		return fmt.Errorf("reading the node's config: %w", err)
	}
	if err := c.prepare(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	joins := make(chan Join)
	go func() {
		defer stop() // whoever has started us is gone or wants us to end
		var j Join
		for in.Decode(&j) == nil {
			select {
			case joins <- j:
			case <-ctx.Done():
			}
		}
	}()

	reaper := newReaper()
	runtimeCtx, stopRuntime := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRuntime()
	runtime := make(chan error, 1)
	go func() {
		runtime <- c.keep(runtimeCtx, reaper, "containerd", "containerd", "--config", c.file("containerd.toml"))
	}()
	if err := answers(ctx, runtime); err != nil {
		return err
	}
	if err := tell.Encode(event{Ready: "containerd"}); err != nil {
		return err
	}
	select {
	case j := <-joins:
		if err := c.serve(ctx, reaper, j, runtime, tell); err != nil {
			return err
		}
	case err := <-runtime:
		return err
	case <-ctx.Done():
	}
	stopRuntime()
	return <-runtime
}

// prepare makes the node's own view of the machine and the configuration in it.
func (c Config) prepare() error {
	if err := c.validate(); err != nil {
		return err
	}
	if err := c.enterRoot(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("naming the node: %w", err)
	}
	if err := errors.Join(c.writeContainerd(), c.writeNetwork()); err != nil {
		return fmt.Errorf("configuring containerd: %w", err)
	}
	return nil
}

// serve runs what joins the node to a cluster until ctx ends.
func (c Config) serve(ctx context.Context, r *reaper, j Join, runtime chan error, tell *json.Encoder) error {
	if err := c.writeKubelet(j); err != nil {
		return fmt.Errorf("configuring the kubelet: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.keep(ctx, r, "kubelet", c.Kube, c.kubeletArgs(j)...) })
	g.Go(func() error { return c.keep(ctx, r, "kube-proxy", c.Kube, c.proxyArgs(j)...) })
	if j.Corefile != "" {
		g.Go(func() error { return c.keep(ctx, r, "coredns", c.Kube, "coredns", "-conf", j.Corefile) })
	}
	g.Go(func() error {
		select {
		case err := <-runtime:
			runtime <- err // run waits for it too
			return err
		case <-ctx.Done():
			return nil
		}
	})
	if err := tell.Encode(event{Ready: "kubelet"}); err != nil {
		return err
	}
	return g.Wait()
}

// A failure is a daemon that does not stay.
type failure struct {
	daemon, log string
	status      unix.WaitStatus
}

func (f *failure) Error() string {
	if f.status.Signaled() {
		return fmt.Sprintf("%s was killed by signal %v", f.daemon, f.status.Signal())
	}
	return fmt.Sprintf("%s ended with exit status %d", f.daemon, f.status.ExitStatus())
}

// keep runs a daemon, again and again should it end, until ctx ends. The
// daemon inherits nothing of our environment: it belongs to the node.
func (c Config) keep(ctx context.Context, r *reaper, name, program string, args ...string) error {
	file := c.file(name + ".log")
	log, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	for ctx.Err() == nil {
		cmd := exec.Command(program, args...)
		cmd.Env = []string{searchPath, "HOME=/root"}
		cmd.Stdout, cmd.Stderr = log, log
		began := time.Now()
		ended, err := r.start(cmd)
		if err != nil {
			return fmt.Errorf("starting %s: %w", name, err)
		}
		select {
		case status := <-ended:
			if time.Since(began) < tooSoon {
				return &failure{daemon: name, log: file, status: status}
			}
		case <-ctx.Done():
			return end(cmd, ended)
		}
	}
	return nil
}

// end is short: whatever remains is killed when the first process returns.
func end(cmd *exec.Cmd, ended <-chan unix.WaitStatus) error {
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-ended:
	case <-time.After(time.Second):
	}
	return nil
}

// answers waits until containerd accepts connections.
func answers(ctx context.Context, runtime <-chan error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-runtime:
			return err
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
