// Package accounts makes FederatedIdentities of annotated service accounts.
//
//	azure.workload.identity/client-id: A    FederatedIdentity of the account's name
//	lanyard.id/client-ids: B, C             and NAME-<first eight digits of B>, …
//
// An object that the account owns follows its annotations and goes with it. An
// object that a person wrote for the same identity is as good, and is left alone.
package accounts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federation/record"
)

// Reasons of events on a service account.
const (
	reasonAnnotation = "InvalidAnnotation"
	reasonNameTaken  = "NameTaken"
)

// A Controller looks after service accounts. Client and Events must be set.
type Controller struct {
	Client client.Client
	Events events.EventRecorder
	Logger *slog.Logger // nil means slog.Default
}

// SetUp registers the controller.
func (c *Controller) SetUp(m manager.Manager) error {
	return builder.ControllerManagedBy(m).
		Named("accounts").
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		For(&corev1.ServiceAccount{}, builder.OnlyMetadata).
		Watches(&lanyard.FederatedIdentity{}, handler.EnqueueRequestsFromMapFunc(accountsOf)).
		Complete(c)
}

// accountsOf are the account that is named and the one that owns.
func accountsOf(_ context.Context, o client.Object) []reconcile.Request {
	f := o.(*lanyard.FederatedIdentity)
	out := []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: f.Namespace, Name: f.Spec.ServiceAccountName}}}
	if owner := metav1.GetControllerOf(f); owner != nil && owner.Kind == "ServiceAccount" && owner.Name != f.Spec.ServiceAccountName {
		out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: f.Namespace, Name: owner.Name}})
	}
	return out
}

// Reconcile makes the objects of one service account what its annotations say.
// An account that is gone says nothing: the garbage collector would remove what it
// owned, too, only later.
func (c *Controller) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	account := record.Account()
	account.Namespace, account.Name = req.Namespace, req.Name
	if err := c.Client.Get(ctx, req.NamespacedName, account); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("reading the service account: %w", err)
	}
	var list lanyard.FederatedIdentityList
	if err := c.Client.List(ctx, &list, client.InNamespace(req.Namespace)); err != nil {
		return reconcile.Result{}, fmt.Errorf("listing FederatedIdentities: %w", err)
	}
	var want []lanyard.FederatedIdentity
	if account.UID != "" && account.DeletionTimestamp.IsZero() {
		var problems []string
		want, problems = Desired(account)
		for _, p := range problems {
			c.tell(account, reasonAnnotation, p)
		}
	}
	for i := range list.Items {
		if err := c.tidy(ctx, account, &list.Items[i], want); err != nil {
			return reconcile.Result{}, err
		}
	}
	for i := range want {
		if err := c.ensure(ctx, account, &want[i], list.Items); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{}, nil
}

// tidy deletes an object of the account that its annotations do not ask for.
func (c *Controller) tidy(ctx context.Context, account *metav1.PartialObjectMetadata, f *lanyard.FederatedIdentity, want []lanyard.FederatedIdentity) error {
	if owner := metav1.GetControllerOf(f); owner == nil || owner.Kind != "ServiceAccount" || owner.Name != account.Name || !f.DeletionTimestamp.IsZero() {
		return nil
	}
	asked := slices.ContainsFunc(want, func(w lanyard.FederatedIdentity) bool { return w.Name == f.Name && w.Spec == f.Spec })
	if asked && metav1.IsControlledBy(f, account) {
		return nil
	}
	if err := c.Client.Delete(ctx, f, client.Preconditions{UID: &f.UID}); err != nil {
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			return nil // it is another one already, or gone
		}
		return fmt.Errorf("deleting FederatedIdentity %s/%s: %w", f.Namespace, f.Name, err)
	}
	c.logger().InfoContext(ctx, "federated identity is no longer asked for", "namespace", f.Namespace, "federatedIdentity", f.Name, "serviceAccount", account.Name)
	return nil
}

// ensure makes one object, unless there is one that is as good. One that stands
// in the way of its name and is going comes back here when it is gone.
func (c *Controller) ensure(ctx context.Context, account *metav1.PartialObjectMetadata, w *lanyard.FederatedIdentity, have []lanyard.FederatedIdentity) error {
	for i := range have {
		f := &have[i]
		if f.Spec.ServiceAccountName == account.Name && azure.Fold(f.Spec.ClientID) == azure.Fold(w.Spec.ClientID) && f.DeletionTimestamp.IsZero() {
			if metav1.GetControllerOf(f) == nil || f.Name == w.Name && f.Spec == w.Spec && metav1.IsControlledBy(f, account) {
				return nil
			}
		}
	}
	for i := range have {
		f := &have[i]
		if f.Name != w.Name {
			continue
		}
		if f.DeletionTimestamp.IsZero() && !metav1.IsControlledBy(f, account) && metav1.GetControllerOf(f) == nil {
			c.tell(account, reasonNameTaken, fmt.Sprintf("FederatedIdentity %s is for another service account or identity, so the one for client id %s was not made: rename it, or write one for this service account by hand", f.Name, w.Spec.ClientID))
		}
		return nil
	}
	err := c.Client.Create(ctx, w)
	if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil // the watch brings it; nothing begins in a namespace that ends
	}
	if err != nil {
		return fmt.Errorf("making FederatedIdentity %s/%s: %w", w.Namespace, w.Name, err)
	}
	c.logger().InfoContext(ctx, "federated identity is asked for by an annotation", "namespace", w.Namespace, "federatedIdentity", w.Name, "serviceAccount", account.Name, "clientID", w.Spec.ClientID)
	return nil
}

var guid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// maxIdentities of one service account: more are a mistake or an attack.
const maxIdentities = 50

// Desired returns the objects that a service account's annotations ask for, and
// what is wrong with the annotations, for people.
func Desired(account *metav1.PartialObjectMetadata) (want []lanyard.FederatedIdentity, problems []string) {
	a := account.Annotations
	tenant := strings.TrimSpace(a[workloadidentity.AnnotationTenantID])
	if tenant != "" && !guid.MatchString(tenant) {
		return nil, []string{fmt.Sprintf("annotation %s: %.100q is not a tenant id such as 72f988bf-86f1-41af-91ab-2d7cd011db47", workloadidentity.AnnotationTenantID, tenant)}
	}
	seen := map[string]bool{}
	add := func(annotation, id, name string) {
		switch id = azure.Fold(strings.TrimSpace(id)); {
		case id == "":
		case !guid.MatchString(id):
			problems = append(problems, fmt.Sprintf("annotation %s: %.100q is not a client id such as 11111111-2222-3333-4444-555555555555", annotation, id))
		case seen[id]:
		case len(seen) == maxIdentities:
			problems = append(problems, fmt.Sprintf("annotation %s: more than %d client ids; the rest is ignored", annotation, maxIdentities))
		default:
			seen[id] = true
			f := lanyard.FederatedIdentity{
				ObjectMeta: metav1.ObjectMeta{Namespace: account.Namespace, Name: name},
				Spec:       lanyard.FederatedIdentitySpec{ServiceAccountName: account.Name, ClientID: id, TenantID: tenant},
			}
			if name == "" {
				f.Name = further(account.Name, id)
			}
			f.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(account, corev1.SchemeGroupVersion.WithKind("ServiceAccount"))}
			f.OwnerReferences[0].BlockOwnerDeletion = nil // needs no right on the account
			want = append(want, f)
		}
	}
	add(workloadidentity.AnnotationClientID, a[workloadidentity.AnnotationClientID], account.Name)
	for id := range strings.SplitSeq(a[lanyard.AnnotationClientIDs], ",") {
		add(lanyard.AnnotationClientIDs, id, "")
		if len(problems) > maxIdentities {
			break
		}
	}
	return want, problems
}

// further is the name of the object for one more identity.
func further(account, clientID string) string {
	if name := account + "-" + clientID[:8]; len(name) <= 253 {
		return name
	}
	sum := sha256.Sum256([]byte(account))
	return strings.TrimRight(account[:200], ".-") + "-" + hex.EncodeToString(sum[:8]) + "-" + clientID[:8]
}

func (c *Controller) tell(account *metav1.PartialObjectMetadata, reason, note string) {
	c.Events.Eventf(&corev1.ObjectReference{APIVersion: "v1", Kind: "ServiceAccount", Namespace: account.Namespace, Name: account.Name, UID: account.UID},
		nil, corev1.EventTypeWarning, reason, "Federate", "%s", record.Clip(note, 1000))
}

func (c *Controller) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}
