package migrate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyardv1 "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	command "github.com/lanyard-id/lanyard/cmd/lanyard/migrate"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/lab"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move"
)

// The test binary is also the first process of the lab's node and containers, and
// the command itself. Without root it runs itself in a user namespace.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "internal" {
		if err := lab.Main(context.Background(), os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "lanyard" {
		os.Exit(run(os.Args[2:]))
	}
	if os.Getuid() != 0 && !lab.InUserNamespace() {
		code, err := lab.RunInUserNamespace(context.Background(), os.Args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// run is the program lanyard with one command.
func run(args []string) int {
	root := &cobra.Command{Use: "lanyard", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(command.Command("lanyard"))
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	var usage cli.UsageError
	var code cli.ExitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "lanyard:", err)
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

const namespace = "shop"

// A house is an estate whose workloads are to be migrated.
type house struct {
	*estate.Estate
	env []string
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newHouse(t *testing.T) *house {
	t.Helper()
	bin, err := filepath.Abs("../../../bin")
	must(t, err)
	missing := lab.Missing()
	if len(missing) > 0 {
		t.Logf("simulated node: pods run as local processes, because a real node needs %v", missing)
	}
	state := filepath.Join(t.TempDir(), "state")
	e, err := estate.Up(t.Context(), estate.Config{
		StateDir: state, BinDir: bin, Self: []string{"/proc/self/exe", "internal"},
		ProcessNode: len(missing) > 0, Step: t.Logf, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	t.Cleanup(func() {
		if err := e.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	status, err := estate.ReadStatus(state)
	must(t, err)
	h := &house{Estate: e}
	for _, v := range status.Env {
		h.env = append(h.env, v.Name+"="+v.Value)
	}
	return h
}

// command prepares a call of lanyard as a person makes it, signed in as the owner.
func (h *house) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"lanyard", "migrate"}, args...)...)
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}, h.env...)
	return cmd
}

// lanyard runs the command and returns what it printed.
func (h *house) lanyard(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if args[0] != "verify" {
		args = append(args, "--auth-method=environment")
	}
	cmd := h.command(ctx, append(args, "-n", namespace)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState.ExitCode() != code {
		t.Fatalf("lanyard migrate %v: %v\n%s\n%s", args, err, out.String(), errs.String())
	}
	for _, text := range []string{out.String(), errs.String()} {
		if strings.Contains(text, "eyJ") {
			t.Errorf("lanyard migrate %v shows a token:\n%s", args, text)
		}
	}
	return out.String(), errs.String()
}

// settle makes the workloads of a customer who uses Pod Identity: five kinds, a
// managed identity, and an application with a password.
func (h *house) settle(t *testing.T) {
	t.Helper()
	blue := h.Cloud.Identities[estate.PodIdentity]
	app, err := h.Cloud.Credential(estate.PasswordPrincipal)
	must(t, err)
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }
	objects := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&v1.AzureIdentity{ObjectMeta: meta("blue"), Spec: v1.AzureIdentitySpec{ResourceID: blue.ResourceID, ClientID: blue.ClientID}},
		&v1.AzureIdentityBinding{ObjectMeta: meta("blue"), Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "blue", Selector: "blue"}},
		&corev1.Secret{ObjectMeta: meta("app"), StringData: map[string]string{"clientSecret": string(app.Password)}},
		&v1.AzureIdentity{ObjectMeta: meta("app"), Spec: v1.AzureIdentitySpec{
			Type: v1.ServicePrincipal, ClientID: app.ClientID, TenantID: app.TenantID, ClientPassword: v1.SecretReference{Name: "app", Namespace: namespace},
		}},
		&v1.AzureIdentityBinding{ObjectMeta: meta("app"), Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "app", Selector: "app"}},
	}
	for _, name := range []string{"api", "worker", "night"} {
		objects = append(objects, &corev1.ServiceAccount{ObjectMeta: meta(name)})
	}
	template := func(name, account, label string, restart corev1.RestartPolicy, args ...string) corev1.PodTemplateSpec {
		return corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name, v1.BindingLabel: label}},
			Spec: corev1.PodSpec{
				ServiceAccountName: account, RestartPolicy: restart, TerminationGracePeriodSeconds: new(int64),
				Containers: []corev1.Container{{Name: "main", Image: "lanyard/workload:dev", ImagePullPolicy: corev1.PullIfNotPresent, Args: args}},
			},
		}
	}
	watch := []string{"watch", "--pause=500ms"}
	sdk := []string{"sdk", "--stay", "--wait=60s", "--vault=" + h.Cloud.VaultURL, "--secret=" + estate.Secret}
	selector := func(name string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	}
	two := int32(2)
	objects = append(objects,
		&appsv1.Deployment{ObjectMeta: meta("api"), Spec: appsv1.DeploymentSpec{Replicas: &two, Selector: selector("api"), Template: template("api", "api", "blue", corev1.RestartPolicyAlways, watch...)}},
		&appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{ServiceName: "db", Selector: selector("db"), Template: template("db", "worker", "blue", corev1.RestartPolicyAlways, sdk...)}},
		&appsv1.DaemonSet{ObjectMeta: meta("agent"), Spec: appsv1.DaemonSetSpec{Selector: selector("agent"), Template: template("agent", "worker", "blue", corev1.RestartPolicyAlways, watch...)}},
		&batchv1.CronJob{ObjectMeta: meta("night"), Spec: batchv1.CronJobSpec{Schedule: "0 0 29 2 *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template("night", "night", "app", corev1.RestartPolicyNever, watch...)}}}},
		&batchv1.Job{ObjectMeta: meta("once"), Spec: batchv1.JobSpec{Template: template("once", "default", "blue", corev1.RestartPolicyNever, watch...)}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "bare", Labels: map[string]string{v1.BindingLabel: "blue"}}, Spec: template("bare", "api", "blue", corev1.RestartPolicyNever, watch...).Spec},
	)
	for _, o := range objects {
		must(t, h.Objects.Create(t.Context(), o))
	}
}

// start runs a CronJob now, as "kubectl create job --from" does.
func (h *house) start(t *testing.T, cron, name string) {
	t.Helper()
	var c batchv1.CronJob
	must(t, h.Objects.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: cron}, &c))
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: c.Spec.JobTemplate.Spec}
	j.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(&c, batchv1.SchemeGroupVersion.WithKind("CronJob"))}
	must(t, h.Objects.Create(t.Context(), j))
}

// stop ends such a run.
func (h *house) stop(t *testing.T, name string) {
	t.Helper()
	must(t, h.Objects.Delete(t.Context(), &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}, client.PropagationPolicy(metav1.DeletePropagationForeground)))
	h.until(t, "the job "+name+" is gone", func(ctx context.Context) error {
		var j batchv1.Job
		if err := h.Objects.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &j); client.IgnoreNotFound(err) != nil || err == nil {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}

// until calls check until it returns nil, and fails the test with its last error.
func (h *house) until(t *testing.T, what string, check func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			t.Logf("%s after %.1f s", what, time.Since(began).Seconds())
			return
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not so: %v", what, last)
		case <-tick.C:
		}
	}
}

// served waits until every running pod got a token since a moment ago, of the
// identity that it should have, by the way that it should.
func (h *house) served(t *testing.T, migrated bool, apps ...string) {
	t.Helper()
	h.until(t, fmt.Sprintf("tokens for the pods of %v (migrated: %v)", apps, migrated), func(ctx context.Context) error {
		var pods corev1.PodList
		if err := h.Objects.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
			return err
		}
		seen := map[string]bool{}
		for i := range pods.Items {
			p := &pods.Items[i]
			app := p.Labels["app"]
			if !slices.Contains(apps, app) || p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded {
				continue
			}
			if (p.Labels["azure.workload.identity/use"] == "true") != migrated {
				return fmt.Errorf("pod %s: labels %v", p.Name, p.Labels)
			}
			want := h.Cloud.Identities[estate.PodIdentity].ClientID
			if app == "night" {
				want = h.Cloud.Applications[estate.PasswordPrincipal].ClientID
			}
			log, err := h.Lab.Client.CoreV1().Pods(namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: "main"}).DoRaw(ctx)
			if err != nil {
				return fmt.Errorf("pod %s: %w", p.Name, err)
			}
			lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
			var a struct {
				Identity struct {
					ClientID string `json:"appid"`
				} `json:"identity"`
			}
			if err := json.Unmarshal(lines[len(lines)-1], &a); err != nil || a.Identity.ClientID != want {
				return fmt.Errorf("pod %s: wants %s, %w: %s", p.Name, want, err, lines[len(lines)-1])
			}
			seen[app] = true
		}
		for _, app := range apps {
			if !seen[app] {
				return fmt.Errorf("%s has no pod", app)
			}
		}
		return nil
	})
}

// snapshot is what "kubectl get -o yaml" shows of everything that a migration
// might touch, but for what the server manages, and the credentials in Azure.
func (h *house) snapshot(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	m, err := move.New(h.Lab.RESTConfig())
	must(t, err)
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet", "CronJob", "Job", "ServiceAccount", "RoleBinding"} {
		gvr, _ := migrate.ResourceOf(kind)
		list, err := m.Objects.Resource(gvr).Namespace(namespace).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for i := range list.Items {
			o := &list.Items[i]
			unstructured.RemoveNestedField(o.Object, "status")
			for _, field := range []string{"resourceVersion", "generation", "managedFields", "uid", "creationTimestamp"} {
				unstructured.RemoveNestedField(o.Object, "metadata", field)
			}
			raw, err := yaml.Marshal(o.Object)
			must(t, err)
			text := string(raw)
			for _, counter := range []string{"deployment.kubernetes.io/revision", "deprecated.daemonset.template.generation", "controller-uid"} {
				text = withoutLines(text, counter)
			}
			all[kind+"/"+o.GetName()] = text
		}
	}
	secrets, err := h.Lab.Client.CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for _, s := range secrets.Items {
		all["Secret/"+s.Name] = string(s.Type)
	}
	return all
}

// withoutLines drops the lines that count up with every change.
func withoutLines(text, name string) string {
	var out []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, name) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

func TestFiveKindsOfWorkloadsGoThereAndBack(t *testing.T) {
	h := newHouse(t)
	h.settle(t)
	h.start(t, "night", "night-1")
	all := []string{"api", "db", "agent", "night", "once"}
	h.served(t, false, all...)
	h.stop(t, "night-1")
	before := h.snapshot(t)

	out, _ := h.lanyard(t, 0, "plan", "--recreate-jobs")
	for _, want := range []string{"Deployment shop/api: rollout", "StatefulSet shop/db: rollout", "DaemonSet shop/agent: rollout", "CronJob shop/night: next run", "Job shop/once: recreate", "Pod shop/bare: BarePod"} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan lacks %q:\n%s", want, out)
		}
	}
	if diff := cmp.Diff(before, h.snapshot(t)); diff != "" {
		t.Fatalf("a plan changes something:\n%s", diff)
	}
	h.interrupted(t, "--recreate-jobs")
	_, progress := h.lanyard(t, 0, "apply", "--recreate-jobs")
	t.Log(progress)
	h.start(t, "night", "night-2")
	h.served(t, true, all...)

	out, _ = h.lanyard(t, 0, "verify", "-o", "json")
	h.checkVerdicts(t, out)
	out, _ = h.lanyard(t, 0, "verify")
	t.Log(out)
	if out, _ = h.lanyard(t, 0, "apply", "--recreate-jobs"); strings.Contains(out, "rollout") {
		t.Errorf("a second apply does something:\n%s", out)
	}

	h.checkProxies(t)

	h.lanyard(t, 0, "apply", "--finish", "--workload=statefulset/db")
	h.checkFinished(t)
	h.served(t, true, all...)
	h.edited(t)
	h.stop(t, "night-2")
	_, progress = h.lanyard(t, 0, "rollback")
	t.Log(progress)
	if diff := cmp.Diff(before, h.snapshot(t)); diff != "" {
		t.Errorf("after the rollback (-before +now):\n%s", diff)
	}
	h.start(t, "night", "night-3")
	h.served(t, false, all...)
	h.noCredentials(t)
	if _, said := h.lanyard(t, 1, "verify"); !strings.Contains(said, "nothing was migrated") {
		t.Errorf("after the rollback: %s", said)
	}
	h.stop(t, "night-3")
	h.byController(t, before)
}

// byController migrates a workload whose credential the federation controller
// makes, as a policy allows, and goes back.
func (h *house) byController(t *testing.T, before map[string]string) {
	t.Helper()
	must(t, h.Objects.Create(t.Context(), &lanyardv1.FederationPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "shop"},
		Spec: lanyardv1.FederationPolicySpec{
			Namespaces: []string{namespace},
			Identities: []lanyardv1.PolicyIdentity{{ResourceID: h.Cloud.Identities[estate.PodIdentity].ResourceID}},
		},
	}))
	args := []string{"--federation=controller", "--workload=deployment/api"}
	_, progress := h.lanyard(t, 0, append([]string{"apply", "--timeout=1m"}, args...)...)
	if !strings.Contains(progress, "FederatedIdentity shop/api-") {
		t.Errorf("no object for the controller: %s", progress)
	}
	if out, _ := h.lanyard(t, 0, "verify"); !strings.Contains(out, "Deployment shop/api") {
		t.Error(out)
	}
	h.served(t, true, "api")
	out, _ := h.lanyard(t, 0, "rollback", "-o", "json")
	var told struct{ RolledBack, Left []migrate.Ref }
	must(t, json.Unmarshal([]byte(out), &told))
	if !slices.Contains(told.RolledBack, migrate.Ref{Kind: "Deployment", Namespace: namespace, Name: "api"}) || len(told.Left) > 0 {
		t.Errorf("rollback -o json tells %s", out)
	}
	h.served(t, false, "api")
	if diff := cmp.Diff(before, h.snapshot(t)); diff != "" {
		t.Errorf("after the rollback of what the controller federated (-before +now):\n%s", diff)
	}
	h.until(t, "the controller takes its credential back", func(ctx context.Context) error {
		var list lanyardv1.FederatedIdentityList
		if err := h.Objects.List(ctx, &list, client.InNamespace(namespace)); err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%d federated identities, %w", len(list.Items), err)
		}
		return nil
	})
}

// interrupted kills an apply in the middle of it.
func (h *house) interrupted(t *testing.T, args ...string) {
	t.Helper()
	cmd := h.command(t.Context(), append([]string{"apply", "-n", namespace, "--auth-method=environment"}, args...)...)
	stderr, err := cmd.StderrPipe()
	must(t, err)
	must(t, cmd.Start())
	var said strings.Builder
	buffer := make([]byte, 4096)
	for !strings.Contains(said.String(), "DaemonSet shop/agent: rollout") {
		n, err := stderr.Read(buffer)
		said.Write(buffer[:n])
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
	}
	must(t, cmd.Process.Kill())
	if err := cmd.Wait(); err == nil {
		t.Error("it ended by itself")
	}
}

func (h *house) checkVerdicts(t *testing.T, out string) {
	t.Helper()
	var verdicts []move.Verdict
	must(t, json.Unmarshal([]byte(out), &verdicts))
	got := map[string]bool{}
	for _, v := range verdicts {
		want := h.Cloud.Identities[estate.PodIdentity]
		if v.Workload.Kind == "CronJob" {
			want = h.Cloud.Applications[estate.PasswordPrincipal]
		}
		if !v.OK || v.Pods == 0 || len(v.Tokens) != 1 || !v.Tokens[0].OK || v.Tokens[0].Pod == "" ||
			v.Tokens[0].ClientID != want.ClientID || v.Tokens[0].ObjectID != want.PrincipalID || v.Tokens[0].TenantID != h.Cloud.Tenant.ID {
			t.Errorf("%+v; want %+v", v, want)
		}
		got[v.Workload.Kind] = true
	}
	if len(got) != 5 {
		t.Errorf("verified: %v", got)
	}
}

// checkProxies asserts that those have the proxy whose programs ask the metadata
// service, as nmi's audit told.
func (h *house) checkProxies(t *testing.T) {
	t.Helper()
	var pods corev1.PodList
	must(t, h.Objects.List(t.Context(), &pods, client.InNamespace(namespace)))
	for _, p := range pods.Items {
		has := slices.ContainsFunc(append(p.Spec.InitContainers, p.Spec.Containers...), func(c corev1.Container) bool { return c.Name == "azwi-proxy" })
		if want := p.Name != "bare" && p.Labels["app"] != "db"; has != want && p.DeletionTimestamp == nil {
			t.Errorf("pod %s has a proxy: %v", p.Name, has)
		}
	}
}

// checkFinished asserts that nmi has nothing to do with the stateful set any more.
func (h *house) checkFinished(t *testing.T) {
	t.Helper()
	var pod corev1.Pod
	must(t, h.Objects.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "db-0"}, &pod))
	if label, has := pod.Labels[v1.BindingLabel]; has {
		t.Errorf("db-0 has the label %s still", label)
	}
	h.until(t, "no assignment for db-0", func(ctx context.Context) error {
		var list v1.AzureAssignedIdentityList
		if err := h.Objects.List(ctx, &list); err != nil {
			return err
		}
		for _, a := range list.Items {
			if a.Spec.Pod == "db-0" {
				return errors.New("it is there")
			}
		}
		return nil
	})
}

// edited asserts that a rollback refuses to overwrite what somebody changed.
func (h *house) edited(t *testing.T) {
	t.Helper()
	change := func(labels map[string]string) {
		var d appsv1.Deployment
		must(t, h.Objects.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "api"}, &d))
		d.Labels = labels
		must(t, h.Objects.Update(t.Context(), &d))
	}
	change(map[string]string{"team": "red"})
	now := h.snapshot(t)
	if _, said := h.lanyard(t, 1, "rollback"); !strings.Contains(said, "Deployment shop/api: somebody else has changed it") || !strings.Contains(said, "+    team: red") {
		t.Errorf("the rollback of an edited object: %s", said)
	}
	if diff := cmp.Diff(now, h.snapshot(t)); diff != "" {
		t.Errorf("a refused rollback changes something:\n%s", diff)
	}
	change(nil)
}

// noCredentials asserts that the identities have no federated credentials left.
func (h *house) noCredentials(t *testing.T) {
	t.Helper()
	out, _ := h.lanyard(t, 0, "plan", "-o", "json", "--recreate-jobs")
	var p migrate.Plan
	must(t, json.Unmarshal([]byte(out), &p))
	if len(p.Credentials) != 4 {
		t.Errorf("a plan after the rollback makes %d credentials, not 4: others are left in Azure\n%s", len(p.Credentials), out)
	}
}
