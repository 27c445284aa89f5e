// Package labtest gives tests a real Kubernetes API server.
//
// A test package declares one cluster; the first test that asks for it starts
// it, all tests share it, and it ends with the test process, however that ends:
//
//	var cluster = labtest.Cluster{CRDs: deploy.FS}
//
//	func TestBindingsAreAssigned(t *testing.T) {
//		config := cluster.Config(t)       // client-go settings of the administrator
//		namespace := cluster.Namespace(t) // a new one, deleted when the test ends
//		...
//		labtest.Eventually(t, t.Context(), func() error { ... })
//	}
//
// The server is "bin/kube server" of this repository (make bin/kube) or the
// program that $LANYARD_KUBE names: etcd, kube-apiserver and the controllers in
// one process on a loopback port. There are no nodes and no scheduler: a pod
// stays as the test makes it. A test that cannot have its cluster fails; it is
// never skipped.
package labtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// startLimit is generous: the server needs 3 s on a quiet machine, and tests
// run on busy ones.
const startLimit = 2 * time.Minute

// controllers are those that tests have a use for: they fill and empty
// namespaces, publish the cluster's CA and make pods of workloads.
var controllers = []string{
	"namespace-controller", "serviceaccount-controller", "root-ca-certificate-publisher-controller",
	"garbage-collector-controller", "replicaset-controller", "deployment-controller",
}

// A Cluster is a control plane that the tests of one package share. The zero
// value is ready to use. It must not be copied after its first use.
type Cluster struct {
	// CRDs holds YAML files; every CustomResourceDefinition in them is applied
	// before the first test runs, other objects are ignored. nil means none.
	CRDs fs.FS

	// Args are more flags of "kube server", for example
	// "--service-account-issuer=https://issuer.example/" or
	// "--apiserver-arg=feature-gates=X=true".
	Args []string

	// Configure, if set, is called once before the start. It may write files
	// into dir and returns more flags that name them: authentication,
	// authorization and audit configuration.
	Configure func(dir string) ([]string, error)

	// AllControllers runs every controller instead of the few that most tests
	// need. Scheduler runs kube-scheduler.
	AllControllers bool
	Scheduler      bool

	once   sync.Once
	server server
	err    error
}

// server is a started "kube server".
type server struct {
	dir        string
	kubeconfig string
	config     *rest.Config
}

// Config returns the client settings of the cluster's administrator: a copy,
// without client-side throttling. It starts the cluster if need be.
func (c *Cluster) Config(t testing.TB) *rest.Config {
	t.Helper()
	c.start(t)
	return rest.CopyConfig(c.server.config)
}

// Kubeconfig returns the path of a self-contained kubeconfig file of the
// cluster's administrator. It starts the cluster if need be.
func (c *Cluster) Kubeconfig(t testing.TB) string {
	t.Helper()
	c.start(t)
	return c.server.kubeconfig
}

// Dir returns the server's directory, with server.log and pki. It starts the
// cluster if need be.
func (c *Cluster) Dir(t testing.TB) string {
	t.Helper()
	c.start(t)
	return c.server.dir
}

func (c *Cluster) start(t testing.TB) {
	t.Helper()
	c.once.Do(func() {
		started := time.Now()
		if c.err = c.run(); c.err != nil {
			return
		}
		t.Logf("labtest: Kubernetes is ready after %.1f s", time.Since(started).Seconds())
	})
	if c.err != nil {
		t.Fatalf("labtest: starting Kubernetes: %v", c.err)
	}
}

func (c *Cluster) run() error {
	program, err := findProgram()
	if err != nil {
		return err
	}
	// The server removes its directory when it ends.
	dir, err := os.MkdirTemp("", "lanyard-labtest-")
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	if err := c.launch(program, dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if c.CRDs == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	return applyCRDs(ctx, c.server.config, c.CRDs)
}

// launch starts the server with its state in dir and waits until it is ready.
func (c *Cluster) launch(program, dir string) error {
	args := []string{"server", "--dir", dir, "--ephemeral", "--die-with-parent"}
	if !c.Scheduler {
		args = append(args, "--no-scheduler")
	}
	if !c.AllControllers {
		args = append(args, "--controllers="+strings.Join(controllers, ","))
	}
	args = append(args, c.Args...)
	if c.Configure != nil {
		config := filepath.Join(dir, "config")
		if err := os.Mkdir(config, 0o700); err != nil {
			return fmt.Errorf("making the configuration directory: %w", err)
		}
		more, err := c.Configure(config)
		if err != nil {
			return fmt.Errorf("configuring: %w", err)
		}
		args = append(args, more...)
	}

	// A file without a name, not a pipe: "go test" waits for whoever holds a
	// pipe of the test process, and a goroutine that reads one would live as
	// long as the server.
	output, err := os.CreateTemp("", "lanyard-labtest-*.log")
	if err != nil {
		return fmt.Errorf("making a file for the server's output: %w", err)
	}
	defer output.Close()
	if err := os.Remove(output.Name()); err != nil {
		return fmt.Errorf("making a file for the server's output: %w", err)
	}
	// Without end: the server outlives the test that starts it.
	cmd := exec.CommandContext(context.Background(), program, args...)
	cmd.Stdout, cmd.Stderr = output, output
	// Ctrl-C is for the test process; the server follows by itself.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("running %s: %w", program, err)
	}
	r, err := waitReady(cmd.Process.Pid, filepath.Join(dir, "ready.json"))
	if err == nil {
		err = c.connect(r.Kubeconfig)
	}
	if err != nil {
		said, _ := io.ReadAll(io.NewSectionReader(output, 0, 1<<20))
		return errors.Join(fmt.Errorf("%w; the server said:\n%s", err, said), stop(cmd.Process))
	}
	c.server.dir = dir
	return nil
}

func (c *Cluster) connect(kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the administrator's kubeconfig: %w", err)
	}
	config.QPS = -1 // no throttling: a test makes its requests at once
	c.server.kubeconfig, c.server.config = kubeconfig, config
	return nil
}

type ready struct {
	Kubeconfig string `json:"kubeconfig"`
}

// waitReady waits for the file that the server writes when it is ready, or for
// its end.
func waitReady(pid int, file string) (ready, error) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	for {
		content, err := os.ReadFile(file)
		switch {
		case err == nil:
			var r ready
			if err := json.Unmarshal(content, &r); err != nil {
				return ready{}, fmt.Errorf("reading %s: %w", file, err)
			}
			return r, nil
		case !errors.Is(err, fs.ErrNotExist):
			return ready{}, fmt.Errorf("waiting for the server: %w", err)
		}
		var status syscall.WaitStatus
		if ended, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil); err == nil && ended == pid {
			return ready{}, fmt.Errorf("the server ended with status %d", status.ExitStatus())
		}
		select {
		case <-ticker.C:
		case <-limit.C:
			return ready{}, fmt.Errorf("the server was not ready after %s", startLimit)
		}
	}
}

// stop ends a server that is of no use. It may have ended before.
func stop(p *os.Process) error {
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping the server: %w", err)
	}
	return nil
}
