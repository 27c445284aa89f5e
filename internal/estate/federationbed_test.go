package estate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud"
	"github.com/lanyard-id/lanyard/internal/estate"
	"github.com/lanyard-id/lanyard/internal/federated"
)

const (
	restricted = "restricted" // a namespace with Kubernetes' strictest pod security
	system     = "lanyard-system"
	controls   = "lanyard-federation" // the federation controller's Deployment
	webhookNS  = workloadidentity.Namespace
	webhooks   = "azure-wi-webhook-controller-manager"
	// interval of the controller's comparisons with Azure: its shortest.
	interval = 10 * time.Second
	many     = 15 // service accounts of one identity
)

// A shop is a bed whose pods use workload identity: service accounts that are
// annotated, and a federation controller that does the rest.
type shop struct {
	*bed
	store    *federated.Client // as the owner
	steady   *watched          // goes on through all that fails
	since    time.Time         // it had its first token
	mu       sync.Mutex
	warnings []string // that the API server gave
}

// HandleWarningHeader implements rest.WarningHandler.
func (s *shop) HandleWarningHeader(_ int, _, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warnings = append(s.warnings, text)
}

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{bed: newBed(t)}
	config := s.Lab.RESTConfig()
	config.WarningHandler = s
	var err error
	s.Objects, err = client.NewWithWatch(config, client.Options{Scheme: s.Objects.Scheme()})
	must(t, err)
	public, err := arm.CloudByName(arm.Public)
	must(t, err)
	s.store = &federated.Client{Credential: s.owner, Cloud: public, Options: policy.ClientOptions{Transport: s.azure}}

	buyers := cloud.Seed{SubscriptionID: s.Cloud.SubscriptionID, ResourceGroup: estate.ResourceGroup, Location: estate.Location}
	for name := range s.identities {
		buyers.Identities = append(buyers.Identities, cloud.SeedIdentity{Name: name})
		buyers.Roles = append(buyers.Roles, cloud.SeedRole{To: name, Role: azure.RoleKeyVaultSecretsUser, On: "providers/Microsoft.KeyVault/vaults/" + estate.Vault})
	}
	_, err = s.Cloud.Seed(t.Context(), buyers)
	must(t, err)

	args := fmt.Sprintf(`[{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--interval=%s"},{"op":"add","path":"/spec/template/spec/containers/0/args/-","value":"--probe-delay=1s"}]`, interval)
	s.patch(t, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: controls}}, args)
	strict := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: restricted, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
	must(t, s.Objects.Create(t.Context(), strict))
	s.allow(t, "shop", "red", "green", "blue", "amber")
	s.account(t, namespace, "red", "red", "green")
	s.account(t, restricted, "red", "red")
	for i := range many {
		s.account(t, namespace, fmt.Sprintf("many-%d", i), "blue")
	}
	s.rolledOut(t, 60*time.Second, system, controls)
	s.untilReady(t, 60*time.Second)
	return s
}

func (s *shop) patch(t *testing.T, o client.Object, patch string) {
	t.Helper()
	must(t, s.Objects.Patch(t.Context(), o, client.RawPatch(types.JSONPatchType, []byte(patch))))
}

// allow lets the service accounts of both namespaces be identities.
func (s *shop) allow(t *testing.T, name string, identities ...string) *lanyard.FederationPolicy {
	t.Helper()
	p := &lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: lanyard.FederationPolicySpec{Namespaces: []string{namespace, restricted}}}
	for _, n := range identities {
		p.Spec.Identities = append(p.Spec.Identities, lanyard.PolicyIdentity{ClientID: s.identities[n].ClientID})
	}
	must(t, s.Objects.Create(t.Context(), p))
	return p
}

// account makes a service account that is an identity, and may be others.
func (s *shop) account(t *testing.T, ns, name, identity string, others ...string) *corev1.ServiceAccount {
	t.Helper()
	a := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
		Namespace: ns, Name: name, Annotations: map[string]string{workloadidentity.AnnotationClientID: s.identities[identity].ClientID},
	}}
	var ids []string
	for _, n := range others {
		ids = append(ids, s.identities[n].ClientID)
	}
	if len(ids) > 0 {
		a.Annotations[lanyard.AnnotationClientIDs] = strings.Join(ids, ",")
	}
	must(t, s.Objects.Create(t.Context(), a))
	return a
}

// rolledOut waits until a Deployment is what its template says.
func (s *shop) rolledOut(t *testing.T, limit time.Duration, ns, name string) {
	t.Helper()
	until(t, limit, name+" is rolled out", func(ctx context.Context) error {
		var d appsv1.Deployment
		if err := s.Objects.Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, &d); err != nil {
			return err
		}
		if want, is := *d.Spec.Replicas, d.Status; is.ObservedGeneration < d.Generation || is.UpdatedReplicas < want || is.AvailableReplicas < want || is.Replicas > want {
			return fmt.Errorf("of %d replicas %d are new, %d available, %d in all", want, is.UpdatedReplicas, is.AvailableReplicas, is.Replicas)
		}
		return nil
	})
}

// claims are the FederatedIdentities of a service account; of all for "".
func (s *shop) claims(ctx context.Context, account string) ([]lanyard.FederatedIdentity, error) {
	var list lanyard.FederatedIdentityList
	err := s.Objects.List(ctx, &list)
	return slices.DeleteFunc(list.Items, func(f lanyard.FederatedIdentity) bool { return account != "" && f.Spec.ServiceAccountName != account }), err
}

// untilReady waits until the tokens of all annotated service accounts are good.
func (s *shop) untilReady(t *testing.T, limit time.Duration) {
	t.Helper()
	until(t, limit, "every federation is ready", func(ctx context.Context) error {
		var accounts corev1.ServiceAccountList
		if err := s.Objects.List(ctx, &accounts); err != nil {
			return err
		}
		all, err := s.claims(ctx, "")
		if err != nil {
			return err
		}
		want := 0
		for _, a := range accounts.Items {
			if a.Annotations[workloadidentity.AnnotationClientID] != "" {
				want++
			}
			if others := a.Annotations[lanyard.AnnotationClientIDs]; others != "" {
				want += 1 + strings.Count(others, ",")
			}
		}
		if len(all) != want {
			return fmt.Errorf("there are %d FederatedIdentities of %d", len(all), want)
		}
		for i := range all {
			if err := condition(&all[i], lanyard.ConditionReady, metav1.ConditionTrue, ""); err != nil {
				return err
			}
		}
		return nil
	})
}

// condition returns an error unless a condition is so, for this reason if one is given.
func condition(f *lanyard.FederatedIdentity, kind string, status metav1.ConditionStatus, reason string) error {
	c := apimeta.FindStatusCondition(f.Status.Conditions, kind)
	if c == nil || c.Status != status || reason != "" && c.Reason != reason {
		return fmt.Errorf("%s of %s: %+v, want %s %s", f.Name, f.Spec.ServiceAccountName, f.Status.Conditions, kind+"="+string(status), reason)
	}
	return nil
}

// credentials are the subjects that an identity trusts, as Azure tells its owner.
func (s *shop) credentials(ctx context.Context, identity string) (subjects []string, err error) {
	list, err := s.store.List(ctx, s.parent(identity))
	for _, c := range list {
		subjects = append(subjects, strings.TrimPrefix(c.Subject, "system:serviceaccount:"))
	}
	slices.Sort(subjects)
	return subjects, err
}

func (s *shop) parent(identity string) federated.Parent {
	p := s.identities[identity]
	return federated.Parent{Kind: federated.ManagedIdentity, ResourceID: p.ResourceID, ClientID: p.ClientID}
}

// labelled is a pod that asks for the identity of its service account.
func labelled(name, account string, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{workloadidentity.LabelUse: "true"}},
		Spec: corev1.PodSpec{
			ServiceAccountName: account, RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64(2)), Containers: containers,
		},
	}
}

// proxied makes the pod one of a program that knows the metadata service only.
func proxied(p *corev1.Pod) *corev1.Pod {
	p.Annotations = map[string]string{workloadidentity.AnnotationInjectProxySidecar: "true"}
	return p
}

// sdk is a container with an unmodified azidentity, imds one with a script.
func (s *shop) sdk(name string, args ...string) corev1.Container {
	return workload(name, append([]string{"sdk", "--wait=30s", "--vault=" + s.Cloud.VaultURL, "--secret=" + estate.Secret}, args...)...)
}

func (s *shop) imds(name string, args ...string) corev1.Container {
	return workload(name, append([]string{"imds", "--wait=5s", "--vault=" + s.Cloud.VaultURL, "--secret=" + estate.Secret}, args...)...)
}

// A report is the line that `workload imds` and `workload sdk` print.
type report struct {
	OK       bool `json:"ok"`
	Identity struct {
		ClientID string `json:"appid"`
	} `json:"identity"`
	Status int    `json:"status"`
	Error  string `json:"error"`
}

// report reads what a container has found out.
func (s *shop) report(ctx context.Context, p *corev1.Pod, container string) (r report, err error) {
	text, err := s.Lab.Client.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: container}).DoRaw(ctx)
	if err != nil {
		return r, err
	}
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(line, []byte("{")) {
			return r, json.Unmarshal(line, &r)
		}
	}
	return r, fmt.Errorf("%s of %s says nothing yet: %.300s", container, p.Name, text)
}

// is returns an error unless a container has read the secret as an identity.
func (s *shop) is(ctx context.Context, p *corev1.Pod, container, identity string) error {
	r, err := s.report(ctx, p, container)
	if err == nil && (!r.OK || r.Identity.ClientID != s.identities[identity].ClientID) {
		err = fmt.Errorf("%s of %s should be %s: %+v", container, p.Name, identity, r)
	}
	return err
}

// mutated tells whether the webhook has seen a pod.
func mutated(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return strings.HasPrefix(v.Name, workloadidentity.VolumePrefix) })
}

// podsOf are the pods of an application that are there and not about to go.
func (s *shop) podsOf(ctx context.Context, app string) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := s.Objects.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{"app": app})
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil }), err
}

// replicas of the SDK as a Deployment, which replaces pods one by one.
func (s *shop) deploy(t *testing.T, app, account string) *appsv1.Deployment {
	t.Helper()
	p := labelled("", account, s.sdk("main", "--stay"))
	p.Labels["app"], p.Spec.RestartPolicy = app, corev1.RestartPolicyAlways
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: app},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec},
		},
	}
	must(t, s.Objects.Create(t.Context(), d))
	return d
}

// untilServed waits until all replicas of an application are mutated and have
// read the secret.
func (s *shop) untilServed(t *testing.T, limit time.Duration, app, identity string) {
	t.Helper()
	until(t, limit, app+" reads its secret", func(ctx context.Context) error {
		pods, err := s.podsOf(ctx, app)
		if err != nil {
			return err
		}
		if len(pods) != 2 {
			return fmt.Errorf("there are %d pods", len(pods))
		}
		var errs []error
		for i := range pods {
			if !mutated(&pods[i]) {
				errs = append(errs, fmt.Errorf("%s has no token", pods[i].Name))
				continue
			}
			errs = append(errs, s.is(ctx, &pods[i], "main", identity))
		}
		return errors.Join(errs...)
	})
}
