package estate_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/lab"
	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// The test binary is also the first process of the lab's node and containers.
// Without root it runs itself in a user namespace, as `lanyard demo` does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "internal" {
		if err := lab.Main(context.Background(), os.Args[2:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
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

const (
	namespace  = metav1.NamespaceDefault
	ownSet     = "aks-nodepool1-vmss" // the scale set of the estate's node
	otherSet   = "aks-nodepool2-vmss"
	controller = "aks-cluster" // as whom mic acts
	hostIMDS   = "169.254.169.254"
	// Pods ask with a slash at the end, as v1's documents do; nmi itself does
	// not, so the cloud's log tells whose requests reached the metadata service.
	pathOfPods = imds.TokenPath + "/"
)

// A bed is an estate whose pods tell what they get, and all of its faults.
type bed struct {
	*estate.Estate
	identities map[string]cloud.Principal
	sets       map[string]string // ARM ids of the scale sets
	net        string            // the node's network namespace, as /proc shows it
	owner      azcore.TokenCredential
	azure      *http.Client
	pods       map[string]*watched // all that there ever were
	leads      string              // the mic that led when everything was last as it should be
}

// A watched pod asks for a token all the time and prints what it gets.
type watched struct {
	name, identity string // identity is empty for a pod that must never get a token
	gone           bool
	answers        []answer
}

// An answer is a line of `workload watch`.
type answer struct {
	At       time.Time `json:"at"`
	Millis   float64   `json:"millis"`
	Status   int       `json:"status"`
	Identity struct {
		ClientID string `json:"appid"`
		ObjectID string `json:"oid"`
	} `json:"identity"`
	Expires    time.Time `json:"expires"`
	RetryAfter string    `json:"retryAfter"`
	Error      string    `json:"error"`
}

func (a answer) String() string {
	return fmt.Sprintf("%s +%.0f ms: status %d, client %q, Retry-After %q %s", a.At.Format("15:04:05.000"), a.Millis, a.Status, a.Identity.ClientID, a.RetryAfter, a.Error)
}

// newBed starts the estate: with a real node where one is possible, like every lab.
func newBed(t *testing.T) *bed {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	must(t, err)
	for _, program := range estate.Programs() {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	missing := lab.Missing()
	if len(missing) > 0 {
		t.Logf("simulated node: pods run as local processes, because a real node needs %v", missing)
	}
	config := estate.Config{
		StateDir: filepath.Join(t.TempDir(), "state"), BinDir: bin, Self: []string{"/proc/self/exe", "internal"},
		ProcessNode: len(missing) > 0, Step: t.Logf, Logger: slog.New(slog.DiscardHandler),
	}
	e, err := estate.Up(t.Context(), config)
	must(t, err)
	t.Cleanup(func() {
		if err := e.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	b := &bed{Estate: e, pods: map[string]*watched{}}
	t.Cleanup(func() {
		if t.Failed() {
			b.tell(t)
		}
	})
	must(t, e.Lab.Netns.Do(func() (err error) {
		b.net, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	b.signIn(t)
	b.seed(t, "red", "green", "blue", "amber", "violet")
	return b
}

// tell logs what the components said last.
func (b *bed) tell(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	list, err := b.Lab.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Logf("listing the components: %v", err)
		return
	}
	lines := int64(300)
	for _, p := range list.Items {
		if p.Labels["component"] == "" && p.Labels["azure-workload-identity.io/system"] == "" && p.Labels["app.kubernetes.io/name"] == "" {
			continue
		}
		text, err := b.Lab.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{TailLines: &lines}).DoRaw(ctx)
		var said strings.Builder
		for line := range strings.Lines(string(text)) {
			if !strings.Contains(line, `"msg":"audit"`) && !strings.Contains(line, `"msg":"request refused"`) && !strings.Contains(line, `"msg":"Start`) {
				said.WriteString(line)
			}
		}
		t.Logf("%s (%v) said last:\n%s", p.Name, err, said.String())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// signIn makes b.azure: the owner's way to Resource Manager.
func (b *bed) signIn(t *testing.T) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b.Cloud.CACertPEM())
	transport := &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: b.Proxy}), TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}
	t.Cleanup(transport.CloseIdleConnections)
	b.azure = &http.Client{Transport: transport, Timeout: 10 * time.Second}
	var err error
	b.owner, err = azidentity.NewClientSecretCredential(b.Cloud.Tenant.ID, b.Cloud.Operator.ClientID, b.Cloud.OperatorSecret(),
		&azidentity.ClientSecretCredentialOptions{ClientOptions: azcore.ClientOptions{Transport: b.azure}})
	must(t, err)
}

// seed makes identities that mic may hand out, with an AzureIdentity and a
// binding each, and a second scale set.
func (b *bed) seed(t *testing.T, names ...string) {
	t.Helper()
	s := cloud.Seed{
		SubscriptionID: b.Cloud.SubscriptionID, ResourceGroup: estate.ResourceGroup, Location: estate.Location,
		Applications: []cloud.SeedApplication{{Name: controller}},
		ScaleSets:    []cloud.SeedScaleSet{{Name: ownSet, Instances: 1}, {Name: otherSet, Instances: 1}},
		Roles:        []cloud.SeedRole{{To: controller, Role: azure.RoleVirtualMachineContributor, On: "providers/" + azure.TypeVirtualMachineScaleSet + "/" + otherSet}},
	}
	for _, n := range names {
		s.Identities = append(s.Identities, cloud.SeedIdentity{Name: n})
		s.Roles = append(s.Roles, cloud.SeedRole{To: controller, Role: azure.RoleManagedIdentityOperator, On: "providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + n})
	}
	seeded, err := b.Cloud.Seed(t.Context(), s)
	must(t, err)
	b.identities, b.sets = seeded.Identities, seeded.ScaleSets
	for _, n := range names {
		meta := metav1.ObjectMeta{Namespace: namespace, Name: n}
		must(t, b.Objects.Create(t.Context(), &v1.AzureIdentity{ObjectMeta: meta, Spec: v1.AzureIdentitySpec{ResourceID: b.identities[n].ResourceID, ClientID: b.identities[n].ClientID}}))
		must(t, b.Objects.Create(t.Context(), &v1.AzureIdentityBinding{ObjectMeta: meta, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: n, Selector: n}}))
	}
}

// pod creates a watched pod; an empty identity means no label. More arguments
// are those of `workload watch`.
func (b *bed) pod(t *testing.T, name, identity string, args ...string) *watched {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64),
			Containers: []corev1.Container{workload("workload", append([]string{"watch", "--url=http://" + hostIMDS + pathOfPods, "--pause=200ms"}, args...)...)},
		},
	}
	if identity != "" {
		p.Labels = map[string]string{"aadpodidbinding": identity}
	}
	return b.watch(t, p, identity)
}

// workload is a container of cmd/workload.
func workload(name string, args ...string) corev1.Container {
	return corev1.Container{Name: name, Image: "lanyard/workload:dev", ImagePullPolicy: corev1.PullIfNotPresent, Args: args}
}

// watch creates a pod that prints what it gets.
func (b *bed) watch(t *testing.T, p *corev1.Pod, identity string) *watched {
	t.Helper()
	if b.pods[p.Name] != nil {
		t.Fatalf("there was a pod %s before", p.Name)
	}
	must(t, b.Objects.Create(t.Context(), p))
	w := &watched{name: p.Name, identity: identity}
	b.pods[p.Name] = w
	return w
}

// remove deletes pods at once, whatever runs in them.
func (b *bed) remove(t *testing.T, pods ...*watched) {
	t.Helper()
	for _, w := range pods {
		must(t, b.Objects.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: w.name}}, client.GracePeriodSeconds(0)))
		w.gone = true
	}
}

// read appends what a pod has printed since the last time.
func (b *bed) read(ctx context.Context, w *watched) error {
	if w.gone {
		return nil
	}
	var last time.Time
	options := &corev1.PodLogOptions{}
	if n := len(w.answers); n > 0 {
		last = w.answers[n-1].At
		options.SinceTime = &metav1.Time{Time: last}
	}
	text, err := b.Lab.Client.CoreV1().Pods(namespace).GetLogs(w.name, options).DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("reading what the pod %s says: %w", w.name, err)
	}
	for d := json.NewDecoder(bytes.NewReader(text)); d.More(); {
		var a answer
		if err := d.Decode(&a); err != nil {
			return fmt.Errorf("the pod %s prints no answers: %w: %.300s", w.name, err, text)
		}
		if a.At.After(last) {
			w.answers = append(w.answers, a)
		}
	}
	return nil
}

func (b *bed) readAll(ctx context.Context) error {
	for _, w := range b.pods {
		if err := b.read(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// since returns the answers to what was asked at an instant or later.
func (w *watched) since(at time.Time) []answer {
	i, _ := slices.BinarySearchFunc(w.answers, at, func(a answer, at time.Time) int { return a.At.Compare(at) })
	return w.answers[i:]
}

// until calls check until it returns nil, and fails the test with its last error.
func until(t *testing.T, limit time.Duration, what string, check func(context.Context) error) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if ctx.Err() == nil || last == nil {
			last = err // what is cut off by the end of ctx says nothing
		}
		if err == nil {
			t.Logf("%s after %.1f s", what, time.Since(began).Seconds())
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, limit, last)
		case <-tick.C:
		}
	}
}

// untilTokens waits until each pod has got a token that it asked for now or later.
func (b *bed) untilTokens(t *testing.T, limit time.Duration, pods ...*watched) {
	t.Helper()
	from := time.Now()
	var names []string
	for _, w := range pods {
		names = append(names, w.name)
	}
	until(t, limit, "a token for "+strings.Join(names, ", "), func(ctx context.Context) error {
		var waiting []error
		for _, w := range pods {
			if err := b.read(ctx, w); err != nil {
				waiting = append(waiting, err)
				continue
			}
			got := w.since(from)
			if len(got) == 0 || got[len(got)-1].Status != 200 {
				waiting = append(waiting, fmt.Errorf("%s has none: the last of %d answers is %v", w.name, len(got), got[max(0, len(got)-1):]))
			}
		}
		return errors.Join(waiting...)
	})
}

// uninterrupted asserts that pods got a token whenever they asked in a time,
// and that no request waited long.
func uninterrupted(t *testing.T, from, to time.Time, pods ...*watched) {
	t.Helper()
	for _, w := range pods {
		last, n := from, 0
		for _, a := range w.since(from) {
			if a.At.After(to) {
				break
			}
			n++
			if a.Status != 200 || a.Millis > 2000 {
				t.Errorf("%s was to have its token all the time: %v", w.name, a)
			}
			if gap := a.At.Sub(last); gap > 3*time.Second {
				t.Errorf("%s did not ask for %s before %v: this proves nothing", w.name, gap, a)
			}
			last = a.At
		}
		if n == 0 || to.Sub(last) > 3*time.Second {
			t.Errorf("%s asked %d times in %s: this proves nothing", w.name, n, to.Sub(from))
		}
	}
}

// lasts waits until a time is over, while the pods ask on.
func (b *bed) lasts(t *testing.T, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := b.Wait(ctx); err != nil {
		t.Fatalf("a part of the estate ended: %v", err)
	}
}

// fail puts a fault in force and returns what ends it.
func (b *bed) fail(t *testing.T, r fault.Rule) (hits func() int, end func()) {
	t.Helper()
	r, err := b.Cloud.Faults().Add(r)
	must(t, err)
	hits = func() int {
		for _, f := range b.Cloud.Faults().List() {
			if f.ID == r.ID {
				return f.Hits
			}
		}
		return r.Count // used up
	}
	return hits, func() {
		if _, err := b.Cloud.Faults().Clear(r.ID); err != nil {
			t.Errorf("ending a fault: %v", err)
		}
	}
}

// asked returns the requests to a host of the cloud from an instant on.
func (b *bed) asked(host string, from time.Time) (found []journal.Entry) {
	for _, e := range b.Cloud.Journal().Tail(-1) {
		if e.Host == host && !e.Time.Before(from) {
			found = append(found, e)
		}
	}
	return found
}

// find returns the lab's process of a program that fits.
func find(t *testing.T, program string, fits func(dir string, args []string) bool) process.ID {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	must(t, err)
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		args := strings.Split(string(text), "\x00")
		if err != nil || path.Base(args[0]) != program || !fits(dir, args) {
			continue
		}
		var pid int
		if _, err := fmt.Sscan(filepath.Base(dir), &pid); err != nil {
			t.Fatal(err)
		}
		id, err := process.Find(pid)
		must(t, err)
		return id
	}
	t.Fatalf("no process of %s is there", program)
	return process.ID{}
}

// onNode finds a process in the node's network.
func (b *bed) onNode(t *testing.T, program, verb string) process.ID {
	t.Helper()
	return find(t, program, func(dir string, args []string) bool {
		link, err := os.Readlink(filepath.Join(dir, "ns/net"))
		return err == nil && link == b.net && (verb == "" || len(args) > 1 && args[1] == verb)
	})
}

// leader finds the process of the mic that leads.
func (b *bed) leader(t *testing.T) (pod string, id process.ID) {
	t.Helper()
	lease, err := b.Lab.Client.CoordinationV1().Leases(namespace).Get(t.Context(), "aad-pod-identity-mic", metav1.GetOptions{})
	must(t, err)
	if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity == "" {
		t.Fatal("no mic leads")
	}
	pod, _, _ = strings.Cut(*lease.Spec.HolderIdentity, "_")
	return pod, find(t, "mic", func(dir string, _ []string) bool {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		return err == nil && slices.Contains(strings.Split(string(env), "\x00"), "HOSTNAME="+pod)
	})
}
