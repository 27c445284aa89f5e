package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	logsapi "k8s.io/component-base/logs/api/v1"

	"github.com/lanyard-id/lanyard/lab/kubernetes/internal/pki"
)

const (
	readyLimit = 2 * time.Minute
	stopLimit  = 15 * time.Second
)

// Ready is the content of DIR/ready.json.
type Ready struct {
	Server       string    `json:"server"`     // URL of the API server
	Kubeconfig   string    `json:"kubeconfig"` // of the cluster administrator
	PID          int       `json:"pid"`
	StartedAt    time.Time `json:"startedAt"`
	ReadySeconds float64   `json:"readySeconds"`
}

// Run runs the control plane until ctx ends, which is no error, or a component
// fails. Progress, and the end of the log after a component failed, go to
// stderr. It may be called once in a process.
func Run(ctx context.Context, c Config, stdout io.Writer, stderr *os.File) (err error) {
	s := &server{Config: c, started: time.Now(), progress: stderr}
	if err := s.claim(); err != nil {
		return err
	}
	defer func() {
		if s.Ephemeral {
			err = errors.Join(err, os.RemoveAll(s.Dir))
		}
	}()
	if !s.LogToStderr {
		restore, err := s.redirect(stderr)
		if err != nil {
			return err
		}
		defer restore()
	}
	if s.DieWithParent {
		var cancel context.CancelFunc
		if ctx, cancel, err = withParent(ctx); err != nil {
			return err
		}
		defer cancel()
	}
	err = s.run(ctx, stdout)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // stopped while it started
	}
	return err
}

// server is a Config at work.
type server struct {
	Config
	started  time.Time
	progress io.Writer
	lock     *os.File // held until the process ends
}

func (s *server) step(format string, args ...any) {
	fmt.Fprintf(s.progress, "kube server: %4.1f s  %s\n", time.Since(s.started).Seconds(), fmt.Sprintf(format, args...))
}

// claim makes Dir and takes it for this process alone.
func (s *server) claim() error {
	if s.Ephemeral {
		if err := checkEphemeral(s.Dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("making --dir: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(s.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the lock of --dir: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(lock, 32))
		lock.Close()
		return fmt.Errorf("%s is in use by the kube server with process id %s: stop it or choose another --dir", s.Dir, holder)
	}
	s.lock = lock
	err = lock.Truncate(0)
	if err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err == nil {
		err = removeIfExists(s.readyFile())
	}
	if err != nil {
		return fmt.Errorf("claiming --dir: %w", err)
	}
	return nil
}

// checkEphemeral refuses a directory that holds anything but what its maker put
// there for this server: --ephemeral must not remove what somebody keeps.
func checkEphemeral(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading --dir: %w", err)
	}
	for _, e := range entries {
		if e.Name() != "config" {
			return fmt.Errorf("%s holds %s, which --ephemeral would remove: choose a new --dir", dir, e.Name())
		}
	}
	return nil
}

func (s *server) readyFile() string { return filepath.Join(s.Dir, "ready.json") }

func (s *server) run(ctx context.Context, stdout io.Writer) error {
	files := pki.Cluster{Dir: s.Dir, IPs: s.addresses(), Nodes: s.Nodes}
	listener, err := s.listen(ctx, files.Kubeconfig("admin"))
	if err != nil {
		return err
	}
	defer listener.Close()
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	host := s.Bind
	if host.IsUnspecified() {
		host = net.IPv4(127, 0, 0, 1)
	}
	files.Server = "https://" + net.JoinHostPort(host.String(), port)
	files.NodeServer = files.Server
	if ip := s.advertised(); ip != nil {
		files.NodeServer = "https://" + net.JoinHostPort(ip.String(), port)
	}
	if err := files.Write(s.started); err != nil {
		return err
	}
	s.step("certificates in %s", filepath.Join(s.Dir, "pki"))

	endpoint, stopEtcd, err := startEtcd(ctx, s.Dir)
	if err != nil {
		return err
	}
	defer stopEtcd() // last: components that lose etcd retry for seconds
	s.step("etcd is ready")

	group, groupCtx := errgroup.WithContext(ctx)
	err = s.start(groupCtx, group, listener, files, endpoint, stdout)
	if err != nil {
		group.Go(func() error { return err }) // ends the others
	}
	<-groupCtx.Done()
	if failed := new(componentError); errors.As(context.Cause(groupCtx), &failed) {
		s.showLog() // before the components add that they stop
	}
	s.step("stopping")
	err = errors.Join(s.wait(group), removeIfExists(s.readyFile()))
	if err == nil {
		s.step("stopped")
	}
	return err
}

// start starts the components in group and returns when all are ready.
func (s *server) start(ctx context.Context, group *errgroup.Group, l net.Listener, files pki.Cluster, etcd string, stdout io.Writer) error {
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged // three components apply it
	if err := logsapi.AddFeatureGates(utilfeature.DefaultMutableFeatureGate); err != nil {
		return fmt.Errorf("setting feature gates: %w", err)
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	exitsAreFailures(ctx, group)
	if err := setVerbosity(s.Verbosity); err != nil {
		return err
	}

	apiserver, err := newAPIServer(ctx, l, apiserverArgs(s.Config, files, etcd))
	if err != nil {
		return fmt.Errorf("configuring kube-apiserver: %w", err)
	}
	launch(ctx, group, "kube-apiserver", apiserver)
	client, err := adminClient(files.Kubeconfig("admin"))
	if err != nil {
		return err
	}
	if err := until(ctx, "kube-apiserver", func(ctx context.Context) error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	}); err != nil {
		return err
	}
	s.step("kube-apiserver is ready at %s", files.Server)

	if err := grant(ctx, client); err != nil {
		return err
	}
	if !s.NoControllerManager {
		if err := s.startControllers(ctx, group, files, client.CoreV1()); err != nil {
			return err
		}
	}
	if !s.NoScheduler {
		run, err := newScheduler(ctx, files)
		if err != nil {
			return fmt.Errorf("configuring kube-scheduler: %w", err)
		}
		launch(ctx, group, "kube-scheduler", run)
	}
	return s.announce(files, stdout)
}

// markerNamespace is where a missing ServiceAccount harms nobody: it holds the
// heartbeats of nodes and never a pod.
const markerNamespace = "kube-node-lease"

// startControllers starts kube-controller-manager and waits until it works: a
// default ServiceAccount that is not there is made. Without one no pod can be
// created.
func (s *server) startControllers(ctx context.Context, group *errgroup.Group, files pki.Cluster, client corev1.CoreV1Interface) error {
	run, serviceAccounts, err := newControllerManager(ctx, controllerManagerArgs(s.Config, files))
	if err != nil {
		return fmt.Errorf("configuring kube-controller-manager: %w", err)
	}
	if serviceAccounts {
		err := client.ServiceAccounts(markerNamespace).Delete(ctx, "default", metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("preparing to see the controllers work: %w", err)
		}
	}
	launch(ctx, group, "kube-controller-manager", run)
	if !serviceAccounts {
		return nil
	}
	err = until(ctx, "the default ServiceAccounts", func(ctx context.Context) error {
		for _, namespace := range []string{markerNamespace, metav1.NamespaceDefault} {
			if _, err := client.ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		s.step("the controllers work")
	}
	return err
}

func (s *server) announce(files pki.Cluster, stdout io.Writer) error {
	took := time.Since(s.started)
	ready := Ready{Server: files.Server, Kubeconfig: files.Kubeconfig("admin"), PID: os.Getpid(), StartedAt: s.started.UTC(), ReadySeconds: took.Seconds()}
	content, err := json.Marshal(ready)
	if err != nil {
		return fmt.Errorf("encoding ready.json: %w", err)
	}
	if err := pki.WriteFile(s.readyFile(), append(content, '\n')); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "ready after %.1f s: %s (KUBECONFIG=%s)\n", took.Seconds(), ready.Server, ready.Kubeconfig)
	return err
}

// wait waits for the components, but not for ever: the process ends next.
func (s *server) wait(group *errgroup.Group) error {
	done := make(chan error, 1)
	go func() { done <- group.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(stopLimit):
		return fmt.Errorf("the components did not stop within %s", stopLimit)
	}
}

// A componentError is a failure whose reason may be in the components' log.
type componentError struct{ error }

func (e *componentError) Unwrap() error { return e.error }

// launch runs a component in group. Whatever it returns before ctx ends is a
// failure: none of them has a reason to stop.
func launch(ctx context.Context, group *errgroup.Group, name string, run func(context.Context) error) {
	group.Go(func() error {
		err := run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errors.New("no reason given")
		}
		return &componentError{fmt.Errorf("%s stopped: %w", name, err)}
	})
}

// listen opens the API server's port. Clients of the last start in this
// directory find the server again, if its port is still free.
func (s *server) listen(ctx context.Context, adminKubeconfig string) (net.Listener, error) {
	bind := s.Bind.String()
	var config net.ListenConfig
	if s.Port == 0 {
		if port := formerPort(adminKubeconfig); port != "" {
			if l, err := config.Listen(ctx, "tcp", net.JoinHostPort(bind, port)); err == nil {
				return l, nil
			}
		}
	}
	l, err := config.Listen(ctx, "tcp", net.JoinHostPort(bind, strconv.Itoa(s.Port)))
	if err != nil {
		return nil, fmt.Errorf("listening for kube-apiserver: %w", err)
	}
	return l, nil
}

func formerPort(kubeconfig string) string {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return "" // the first start
	}
	u, err := url.Parse(config.Host)
	if err != nil {
		return ""
	}
	return u.Port()
}

func adminClient(kubeconfig string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reading the admin kubeconfig: %w", err)
	}
	config.QPS = -1 // no throttling
	config.Timeout = 5 * time.Second
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making the admin client: %w", err)
	}
	return client, nil
}

// until asks again and again until check succeeds.
func until(ctx context.Context, what string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("not ready after %s", readyLimit))
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return &componentError{fmt.Errorf("waiting for %s: %w: %w", what, context.Cause(ctx), err)}
		case <-ticker.C:
		}
	}
}

func removeIfExists(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
