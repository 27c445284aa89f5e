package lab

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/lanyard-id/lanyard/internal/lab/image"
)

// The simulated node must do without root, so its test runs once more as
// root of a user namespace.
func TestASimulatedNodeNeedsNoRoot(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run=^TestAPodRunsAsLocalProcesses$")
	cmd.Dir = "."
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestAPodRunsAsLocalProcesses") {
		t.Fatalf("in a user namespace: %v\n%s", err, out)
	}
}

func TestAPodRunsAsLocalProcesses(t *testing.T) {
	ctx := t.Context()
	if missing := Missing(); InUserNamespace() && !slices.ContainsFunc(missing, func(r Requirement) bool { return r.Name == "root" }) {
		t.Errorf("a user namespace's root is taken for the machine's: %v is missing", missing)
	}
	cfg := config(filepath.Join(t.TempDir(), "state"), programs(t))
	cfg.ProcessNode = true
	l := start(t, cfg)
	serveMetadata(t, l)
	ca := "-----BEGIN CERTIFICATE-----\n"
	if err := l.LoadImages(ctx, image.Image{Ref: "lanyard/probe:dev", Binary: l.program("probe"), User: "65532:65532", CACerts: []byte(ca)}); err != nil {
		t.Fatal(err)
	}
	core := l.Client.CoreV1()
	if _, err := core.Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}, StringData: map[string]string{"k": "from the secret"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := core.Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "probe"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "probe"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := core.Pods("default").Create(ctx, localPod(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var pod *corev1.Pod
	eventually(t, 30*time.Second, func() (err error) {
		if pod, err = core.Pods("default").Get(ctx, "probe", metav1.GetOptions{}); err != nil {
			return err
		}
		i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
		if i < 0 || pod.Status.Conditions[i].Status != corev1.ConditionTrue || pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("status %+v", pod.Status)
		}
		return nil
	})
	t.Logf("pod is ready after %v", time.Since(began))

	t.Run("its program sees what a container would", func(t *testing.T) {
		logs, err := core.Pods("default").GetLogs("probe", &corev1.PodLogOptions{}).DoRaw(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got, token := "", ""
		for line := range strings.Lines(string(logs)) {
			if strings.HasPrefix(line, "/var/run/token/t ") {
				token = strings.TrimSpace(strings.TrimPrefix(line, "/var/run/token/t "))
				continue
			}
			got += line
		}
		want := "kubernetes.default.svc [10.96.0.1]\nlogin.microsoftonline.com [10.250.0.10]\nexample.com does not exist\n" +
			"/etc/ssl/certs/ca-certificates.crt " + ca + "$SECRET from the secret\n$IP " + pod.Status.PodIP + "\n$COMPOSED a-from the secret\nhttp://169.254.169.254/ you are " + pod.Status.PodIP + "\nhostname probe <nil>\n"
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
		checkToken(t, token, "api://AzureADTokenExchange")
	})
	t.Run("its service answers", func(t *testing.T) {
		service, err := core.Services("default").Get(ctx, "probe", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{DialContext: l.Netns.DialContext, DisableKeepAlives: true}}
		eventually(t, 10*time.Second, func() error {
			res, err := client.Get("http://" + net.JoinHostPort(service.Spec.ClusterIP, "80"))
			if err != nil {
				return err
			}
			defer res.Body.Close()
			_, err = io.Copy(io.Discard, res.Body)
			return err
		})
	})
	t.Run("it ends when it is deleted", func(t *testing.T) {
		if err := core.Pods("default").Delete(ctx, "probe", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, func() error {
			_, err := core.Pods("default").Get(ctx, "probe", metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(errors.New("the pod is still there"), err)
		})
		for _, p := range (mark{netns: link(t, l)}).processes(t) {
			if strings.Contains(p, "/probe") {
				t.Errorf("process left: %s", p)
			}
		}
	})
}

// serveMetadata tells everybody who asks the metadata service who they are.
func serveMetadata(t *testing.T, l *Lab) {
	t.Helper()
	listener, err := l.Netns.Listen(t.Context(), "tcp", netip.AddrPortFrom(MetadataAddress, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, "you are ", host)
		if err != nil {
			t.Error(err)
		}
	})}
	l.Serve(func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { server.Close() })
		defer stop()
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
}

func localPod() *corev1.Pod {
	hour := int64(3600)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "probe", Labels: map[string]string{"app": "probe"}},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "probe", Image: "lanyard/probe:dev",
				Args: []string{"kubernetes.default.svc", "login.microsoftonline.com", "example.com", "/var/run/token/t", image.CABundle, "$SECRET", "$IP", "$COMPOSED", "http://169.254.169.254/"},
				Env: []corev1.EnvVar{
					{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}},
					{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
					{Name: "COMPOSED", Value: "a-$(SECRET)"},
				},
				Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString("http")}}},
				VolumeMounts:   []corev1.VolumeMount{{Name: "token", MountPath: "/var/run/token", ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "api://AzureADTokenExchange", ExpirationSeconds: &hour, Path: "t"}}},
			}}}},
		},
	}
}

// checkToken looks at the claims that matter: for whom, and bound to what.
func checkToken(t *testing.T, token, audience string) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("the pod has no token, but %d parts", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Audience   []string `json:"aud"`
		Kubernetes struct {
			Pod struct{ Name string } `json:"pod"`
		} `json:"kubernetes.io"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{audience}, claims.Audience); diff != "" || claims.Kubernetes.Pod.Name != "probe" {
		t.Errorf("claims %+v (-want +got):\n%s", claims, diff)
	}
}

func link(t *testing.T, l *Lab) string {
	t.Helper()
	var netns string
	if err := l.Netns.Do(func() (err error) {
		netns, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return netns
}
