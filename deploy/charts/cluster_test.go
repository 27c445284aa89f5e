package charts_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

// Two clusters: one without a custom resource, as a user's before the first
// install, and one that v1 was installed on.
var fresh, old labtest.Cluster

// A world is a cluster with Helm and the clients of its administrator.
type world struct {
	*testing.T
	kubeconfigFile string // of the administrator
	namespace      string
	release        string
	wait           kube.WaitStrategy // of installs, upgrades and the uninstallation
	objects        client.Client
	kube           *kubernetes.Clientset
	helm           *action.Configuration
}

func newWorld(t *testing.T, cluster *labtest.Cluster, namespace string) *world {
	t.Helper()
	// Without a node there is nothing to wait for but hooks, which the test runs.
	return connect(t, cluster.Kubeconfig(t), namespace, kube.HookOnlyStrategy)
}

func connect(t *testing.T, kubeconfig, namespace string, wait kube.WaitStrategy) *world {
	t.Helper()
	w := &world{T: t, kubeconfigFile: kubeconfig, namespace: namespace, release: release1, wait: wait}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1 // no throttling
	if w.objects, err = client.New(config, client.Options{}); err != nil {
		t.Fatal(err)
	}
	if w.kube, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	flags := genericclioptions.NewConfigFlags(false)
	flags.KubeConfig, flags.Namespace = &kubeconfig, &namespace
	w.helm = action.NewConfiguration(action.ConfigurationSetLogger(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err := w.helm.Init(flags, namespace, "secret"); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) install(c *chart.Chart, vals map[string]any) error {
	i := action.NewInstall(w.helm)
	i.ReleaseName, i.Namespace, i.CreateNamespace = w.release, w.namespace, true
	i.WaitStrategy, i.Timeout = w.wait, time.Minute
	_, err := i.RunWithContext(w.Context(), c, vals)
	return err
}

func (w *world) upgrade(c *chart.Chart, vals map[string]any) error {
	u := action.NewUpgrade(w.helm)
	u.Namespace, u.ResetThenReuseValues = w.namespace, true
	u.WaitStrategy, u.Timeout = w.wait, time.Minute
	_, err := u.RunWithContext(w.Context(), w.release, c, vals)
	return err
}

func (w *world) uninstall() {
	w.Helper()
	u := action.NewUninstall(w.helm)
	u.WaitStrategy, u.Timeout = w.wait, time.Minute
	if _, err := u.Run(w.release); err != nil {
		w.Fatal(err)
	}
}

// release1 is the release's name: not the chart's, as it is with many users.
const release1 = "pod-identity"

// node plays the part of a node for Jobs: it runs the real program with the
// rights of the Job's own service account, and reports how it ended. stop
// returns what the programs said.
func (w *world) node(program string) (stop func() []string) {
	w.Helper()
	ctx, cancel := context.WithCancel(w.Context())
	jobs, err := w.kube.BatchV1().Jobs(w.namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	var said []string
	done := make(chan error, 1)
	go func() {
		var errs []error
		for e := range jobs.ResultChan() {
			job, ok := e.Object.(*batchv1.Job)
			if !ok || e.Type != watch.Added {
				continue
			}
			output, err := w.runJob(ctx, job, program)
			said = append(said, output)
			errs = append(errs, err)
		}
		done <- errors.Join(errs...)
	}()
	return sync.OnceValue(func() []string {
		jobs.Stop()
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
		return said
	})
}

func (w *world) runJob(ctx context.Context, job *batchv1.Job, program string) (string, error) {
	pod := job.Spec.Template.Spec
	token, err := w.kube.CoreV1().ServiceAccounts(job.Namespace).CreateToken(ctx, pod.ServiceAccountName, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("a token of the job's service account: %w", err)
	}
	file, err := w.kubeconfig(token.Status.Token)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, pod.Containers[0].Args...)
	cmd.Env = []string{"KUBECONFIG=" + file}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	failed := cmd.Run()
	now := metav1.Now()
	job.Status.StartTime = &now
	conditions := []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete}
	if failed != nil {
		conditions = []batchv1.JobConditionType{batchv1.JobFailureTarget, batchv1.JobFailed}
	} else {
		job.Status.CompletionTime = &now
		job.Status.Succeeded = 1
	}
	for _, c := range conditions {
		job.Status.Conditions = append(job.Status.Conditions, batchv1.JobCondition{Type: c, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	_, err = w.kube.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, job, metav1.UpdateOptions{})
	return output.String(), err
}

// kubeconfig writes a kubeconfig file with a bearer token in place of the
// administrator's certificate.
func (w *world) kubeconfig(token string) (string, error) {
	config, err := clientcmd.LoadFromFile(w.kubeconfigFile)
	if err != nil {
		return "", err
	}
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: token}
	}
	dir, err := os.MkdirTemp(w.TempDir(), "")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "kubeconfig")
	return file, clientcmd.WriteToFile(*config, file)
}

// bin is where the programs are built to, once for all tests.
var bin string

var build = sync.OnceValue(func() error {
	build := exec.Command("go", "build", "-o", bin, "./cmd/mic", "./cmd/nmi", "./cmd/webhook", "./cmd/federation")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return nil
})

func program(t testing.TB, name string) string {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bin, name)
}

func TestMain(m *testing.M) {
	var err error
	if bin, err = os.MkdirTemp("", "lanyard-charts-"); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(bin); err != nil {
		panic(err)
	}
	os.Exit(code)
}
