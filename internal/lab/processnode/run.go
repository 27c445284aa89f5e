package processnode

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A container is one container of a pod, and the process that it is now.
type container struct {
	pod  *pod
	spec corev1.Container

	started sync.Once
	running chan struct{} // closed when it has first been started, and its postStart hook has ended
	over    chan struct{} // closed when it will not run again

	mu       sync.Mutex
	process  *os.Process
	ending   bool
	ready    bool
	restarts int32
	state    corev1.ContainerState
	last     corev1.ContainerState
}

// begun waits until the container has first been started.
func (c *container) begun(ctx context.Context) error {
	select {
	case <-c.running:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keep runs the container as often as policy says and returns the exit status
// of its last run.
func (c *container) keep(ctx context.Context, policy corev1.RestartPolicy) int32 {
	defer close(c.over)
	pause := time.Second
	for {
		code := c.once(ctx)
		c.mu.Lock()
		again := !c.ending && ctx.Err() == nil && (policy == corev1.RestartPolicyAlways || policy == corev1.RestartPolicyOnFailure && code != 0)
		c.mu.Unlock()
		c.pod.report(ctx)
		if !again {
			return code
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return code
		case <-timer.C:
		}
		pause = min(2*pause, 10*time.Second)
		c.mu.Lock()
		c.restarts++
		c.last = c.state
		c.mu.Unlock()
	}
}

// once runs the container once.
func (c *container) once(ctx context.Context) int32 {
	cmd, err := c.command(ctx)
	if err == nil {
		err = c.start(ctx, cmd)
	}
	if err != nil {
		c.set(func() {
			c.state = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CreateContainerError", Message: err.Error()}}
		})
		return 128
	}
	began := metav1.Now()
	if err := c.postStart(ctx); err != nil {
		c.pod.explain(err.Error())
		_ = cmd.Process.Kill() // fails only when it has ended
	} else {
		c.started.Do(func() { close(c.running) })
	}
	c.pod.report(ctx)
	err = cmd.Wait()
	code := int32(cmd.ProcessState.ExitCode())
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int32(status.Signal())
	}
	reason := "Completed"
	if err != nil {
		reason = "Error"
	}
	c.set(func() {
		c.process, c.ready = nil, false
		c.state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, StartedAt: began, FinishedAt: metav1.Now()}}
	})
	return code
}

// postStart runs the container's postStart command, in a container of its own
// with the same files and the same network.
func (c *container) postStart(ctx context.Context) error {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PostStart == nil || c.spec.Lifecycle.PostStart.Exec == nil {
		return nil
	}
	hook := &container{pod: c.pod, spec: *c.spec.DeepCopy()}
	hook.spec.Command, hook.spec.Args = c.spec.Lifecycle.PostStart.Exec.Command, nil
	cmd, err := hook.command(ctx)
	if err != nil {
		return err
	}
	if err := hook.start(ctx, cmd); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the postStart hook of container %s failed: %w", c.spec.Name, err)
	}
	return nil
}

func (c *container) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

func (c *container) start(ctx context.Context, cmd *exec.Cmd) error {
	log, err := os.OpenFile(c.pod.log(c.spec.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending || ctx.Err() != nil {
		return errors.New("the pod ends")
	}
	if err := c.pod.net.Start(cmd); err != nil {
		return err
	}
	c.process = cmd.Process
	c.state = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}}
	c.ready = c.spec.ReadinessProbe == nil
	return nil
}

// end asks the container to end, and after the grace period makes it.
func (c *container) end(ctx context.Context, grace time.Duration) {
	signal := func(s os.Signal) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ending = true
		if c.process != nil {
			_ = c.process.Signal(s) // fails only when it has ended
		}
	}
	if grace > 0 {
		signal(unix.SIGTERM)
		timer := time.NewTimer(grace)
		defer timer.Stop()
		c.mu.Lock()
		idle := c.process == nil
		c.mu.Unlock()
		if idle {
			return
		}
		select {
		case <-c.over:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	signal(unix.SIGKILL)
}

// command makes the command line that becomes the container.
func (c *container) command(ctx context.Context) (*exec.Cmd, error) {
	p := c.pod
	img, ok := p.node.image(c.spec.Image)
	if !ok {
		return nil, fmt.Errorf("%s: %w", c.spec.Image, errMissingImage)
	}
	env, err := p.environment(ctx, c.spec)
	if err != nil {
		return nil, err
	}
	args := c.spec.Command
	if len(args) == 0 {
		if args = img.Entrypoint; len(args) == 0 {
			args = []string{"/" + filepath.Base(img.Binary)}
		}
	}
	values := map[string]string{}
	s := spec{
		Root: filepath.Join(p.dir(), "root"), Binary: img.Binary, Dir: c.spec.WorkingDir, Hostname: p.hostname(),
		Files: files(img.CACerts, p.resolv(), fmt.Sprintf("127.0.0.1\tlocalhost\n::1\tlocalhost\n%s\t%s\n", p.addr, p.hostname())),
		Env:   []string{"PATH=/", "HOSTNAME=" + p.hostname(), "HOME=/"},
	}
	for _, e := range env {
		values[e.Name] = e.Value
		s.Env = append(s.Env, e.Name+"="+e.Value)
	}
	for _, a := range append(append([]string{}, args...), c.spec.Args...) {
		s.Args = append(s.Args, expand(a, values))
	}
	s.User, s.Group = identity(img.User, p.object.Spec.SecurityContext, c.spec.SecurityContext)
	for _, m := range c.spec.VolumeMounts {
		s.Mounts = append(s.Mounts, mount{Source: p.source(m), Target: m.MountPath, ReadOnly: m.ReadOnly})
	}
	if err := os.MkdirAll(s.Root, 0o700); err != nil {
		return nil, err
	}
	told, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(p.node.Self[0], append(p.node.Self[1:len(p.node.Self):len(p.node.Self)], "container")...)
	cmd.Env = []string{} // the container's own comes with the spec
	cmd.Stdin = bytes.NewReader(told)
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	return cmd, nil
}

func (p *pod) source(m corev1.VolumeMount) string {
	return filepath.Join(p.volume(m.Name), filepath.Clean("/"+m.SubPath))
}

// identity says as whom a container runs: what is closer to it counts.
func identity(image string, pod *corev1.PodSecurityContext, own *corev1.SecurityContext) (user, group *int64) {
	var u, g int64
	if n, err := fmt.Sscanf(image, "%d:%d", &u, &g); err == nil && n == 2 {
		user, group = &u, &g
	}
	if pod != nil && pod.RunAsUser != nil {
		user = pod.RunAsUser
	}
	if pod != nil && pod.RunAsGroup != nil {
		group = pod.RunAsGroup
	}
	if own != nil && own.RunAsUser != nil {
		user = own.RunAsUser
	}
	if own != nil && own.RunAsGroup != nil {
		group = own.RunAsGroup
	}
	return user, group
}

var reference = regexp.MustCompile(`\$\$|\$\([-._a-zA-Z][-._a-zA-Z0-9]*\)`)

// expand replaces $(NAME); $$ stands for $; an unknown name stays.
func expand(s string, values map[string]string) string {
	return reference.ReplaceAllStringFunc(s, func(r string) string {
		if r == "$$" {
			return "$"
		}
		if v, ok := values[strings.Trim(r, "$()")]; ok {
			return v
		}
		return r
	})
}

// probe asks whether the container is ready, as its readiness probe says.
func (c *container) probe(ctx context.Context) {
	probe := c.spec.ReadinessProbe
	if probe == nil {
		return
	}
	period := time.Duration(max(probe.PeriodSeconds, 1)) * time.Second
	client := &http.Client{
		Timeout: time.Duration(max(probe.TimeoutSeconds, 1)) * time.Second,
		Transport: &http.Transport{
			DialContext: c.pod.node.Net.DialContext, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // as kubelets do: the name is an address
		},
	}
	for first := true; ; first = false {
		err := c.check(ctx, client)
		c.mu.Lock()
		changed := c.process != nil && c.ready != (err == nil)
		if changed {
			c.ready = err == nil
		}
		wait := period
		if !c.ready && (first || wait > time.Second) {
			wait = 200 * time.Millisecond // while it starts, every moment counts
		}
		c.mu.Unlock()
		if changed {
			c.pod.report(ctx)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-c.over:
		case <-timer.C:
			continue
		}
		timer.Stop()
		return
	}
}

func (c *container) check(ctx context.Context, client *http.Client) error {
	get := c.spec.ReadinessProbe.HTTPGet
	if get == nil {
		return nil // other kinds of probes always succeed
	}
	scheme := strings.ToLower(string(get.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	host := get.Host
	if host == "" {
		host = c.pod.addr.String()
	}
	url := fmt.Sprintf("%s://%s:%d%s", scheme, host, c.port(get.Port), get.Path)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

func (c *container) port(p intstr.IntOrString) int32 {
	for _, known := range c.spec.Ports {
		if p.Type == intstr.String && known.Name == p.StrVal {
			return known.ContainerPort
		}
	}
	return p.IntVal
}
