package bed

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
)

// writers is how many requests the benchmark itself has under way when it
// fills a cluster.
const writers = 24

// Each calls do for every number from 0 to n-1, some at the same time.
func Each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return do(ctx, i) })
	}
	return g.Wait()
}

func (b *Bed) serviceAccount(ctx context.Context, name string) (token string, err error) {
	accounts := b.Kube.CoreV1().ServiceAccounts(metav1.NamespaceDefault)
	if _, err := accounts.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	_, err = b.Kube.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "bench-" + name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceDefault, Name: name}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return "", err
	}
	seconds := int64(24 * 3600)
	r, err := accounts.CreateToken(ctx, name, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}

// Namespace makes a namespace in which pods can be made at once.
func (b *Bed) Namespace(ctx context.Context, name string) error {
	if _, err := b.Kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the namespace %s: %w", name, err)
	}
	_, err := b.Kube.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating the default service account: %w", err)
	}
	return nil
}

// machine is a node that is instance number i of a scale set.
func machine(name, scaleSet string, i int) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": "linux"}},
		Spec: corev1.NodeSpec{ProviderID: fmt.Sprintf("azure:///subscriptions/%s/resourceGroups/%s/providers/Microsoft.Compute/virtualMachineScaleSets/%s/virtualMachines/%d",
			standin.Subscription, standin.Group, scaleSet, i)},
	}
}

// ScaleSet makes the nodes of a scale set and returns their names.
func (b *Bed) ScaleSet(ctx context.Context, name string, size int) ([]string, error) {
	names := make([]string, size)
	err := Each(ctx, size, func(ctx context.Context, i int) error {
		names[i] = fmt.Sprintf("%s-%06d", name, i)
		_, err := b.Kube.CoreV1().Nodes().Create(ctx, machine(names[i], name, i), metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("creating nodes: %w", err)
	}
	return names, nil
}

// Pod is a pod that the scheduler has put on a node. Its label chooses the
// identity of that number.
func Pod(namespace, name, node string, identity int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{v1.BindingLabel: standin.IdentityName(identity)}},
		Spec: corev1.PodSpec{
			NodeName: node, AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{Name: "main", Image: "bench"}},
		},
	}
}

func managedIdentity(namespace string, n int) *v1.AzureIdentity {
	return &v1.AzureIdentity{
		ObjectMeta: metav1.ObjectMeta{Name: standin.IdentityName(n), Namespace: namespace},
		Spec: v1.AzureIdentitySpec{
			Type: v1.UserAssignedMSI, ClientID: standin.ClientID(n),
			ResourceID: fmt.Sprintf("/subscriptions/%s/resourcegroups/%s/providers/Microsoft.ManagedIdentity/userAssignedIdentities/%s", standin.Subscription, standin.Group, standin.IdentityName(n)),
		},
	}
}

// Bind lets the pods with the label of one number use the identity of another.
func Bind(namespace string, label, identity int) *v1.AzureIdentityBinding {
	return &v1.AzureIdentityBinding{
		ObjectMeta: metav1.ObjectMeta{Name: standin.IdentityName(identity), Namespace: namespace},
		Spec:       v1.AzureIdentityBindingSpec{AzureIdentity: standin.IdentityName(identity), Selector: standin.IdentityName(label)},
	}
}

// Identities makes managed identities first to first+n-1, each with its binding.
func (b *Bed) Identities(ctx context.Context, namespace string, first, n int) error {
	return Each(ctx, n, func(ctx context.Context, i int) error {
		for _, o := range []client.Object{managedIdentity(namespace, first+i), Bind(namespace, first+i, first+i)} {
			if err := b.Objects.Create(ctx, o); err != nil {
				return fmt.Errorf("creating %T %s: %w", o, o.GetName(), err)
			}
		}
		return nil
	})
}

// A Tracker follows the assignments of a cluster by a watch.
type Tracker struct {
	mu       sync.Mutex
	state    map[string]string // status by namespace/name
	changed  chan struct{}
	assigned int
}

// Track starts a Tracker, which ends with ctx.
func (b *Bed) Track(ctx context.Context) (*Tracker, error) {
	d, err := dynamic.NewForConfig(b.config)
	if err != nil {
		return nil, err
	}
	t := &Tracker{state: map[string]string{}, changed: make(chan struct{})}
	informer := dynamicinformer.NewFilteredDynamicInformer(d, v1.GroupVersion().WithResource("azureassignedidentities"), "", 0, nil, nil).Informer()
	slim := func(o any) (any, error) {
		if u, ok := o.(*unstructured.Unstructured); ok {
			status, _, _ := unstructured.NestedString(u.Object, "status", "status")
			u.Object = map[string]any{"metadata": map[string]any{"name": u.GetName(), "namespace": u.GetNamespace()}, "status": map[string]any{"status": status}}
		}
		return o, nil
	}
	if err := informer.SetTransform(slim); err != nil {
		return nil, err
	}
	if _, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    t.set,
		UpdateFunc: func(_, o any) { t.set(o) },
		DeleteFunc: t.gone,
	}); err != nil {
		return nil, err
	}
	go informer.RunWithContext(ctx)
	if !toolscache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, ctx.Err()
	}
	return t, nil
}

func (t *Tracker) set(o any) {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return
	}
	status, _, _ := unstructured.NestedString(u.Object, "status", "status")
	t.note(u.GetNamespace()+"/"+u.GetName(), status)
}

func (t *Tracker) gone(o any) {
	key, err := toolscache.DeletionHandlingMetaNamespaceKeyFunc(o)
	if err == nil {
		t.note(key, "")
	}
}

// note keeps the state of one assignment; empty means that it is gone.
func (t *Tracker) note(key, status string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state[key] == v1.AssignedIDAssigned {
		t.assigned--
	}
	if status == "" {
		delete(t.state, key)
	} else {
		t.state[key] = status
	}
	if status == v1.AssignedIDAssigned {
		t.assigned++
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// Wait waits until so many assignments are assigned, of so many in all.
func (t *Tracker) Wait(ctx context.Context, limit time.Duration, assigned, all int) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		t.mu.Lock()
		a, n, changed := t.assigned, len(t.state), t.changed
		t.mu.Unlock()
		if a == assigned && n == all {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return fmt.Errorf("after %s %d of %d are assigned, and there are %d assignments instead of %d", limit, a, assigned, n, all)
		}
	}
}

// Writes returns how many writing requests the API server has answered so far:
// see countWrites.
func (b *Bed) Writes(ctx context.Context) (map[string]int, error) {
	text, err := b.Kube.CoreV1().RESTClient().Get().AbsPath("/metrics").Do(ctx).Raw()
	if err != nil {
		return nil, fmt.Errorf("reading the API server's metrics: %w", err)
	}
	return countWrites(string(text)), nil
}

// countWrites reads apiserver_request_total in the text format of Prometheus.
// The keys are "azureassignedidentities PATCH", and "refused" in place of the
// verb for what was not granted.
func countWrites(text string) map[string]int {
	out := map[string]int{}
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "apiserver_request_total{")
		if !ok {
			continue
		}
		labels, value, ok := strings.Cut(rest, "} ")
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if !ok || err != nil {
			continue
		}
		switch label(labels, "verb") {
		case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, "APPLY":
			kind := label(labels, "verb")
			if !strings.HasPrefix(label(labels, "code"), "2") {
				kind = "refused"
			}
			out[label(labels, "resource")+" "+kind] += int(n)
		}
	}
	return out
}

// label returns the value of a label in name="value",...
func label(labels, name string) string {
	for l := range strings.SplitSeq(labels, ",") {
		if v, ok := strings.CutPrefix(l, name+`="`); ok {
			return strings.TrimSuffix(v, `"`)
		}
	}
	return ""
}
