// Package record writes what the controllers find into the status of
// FederatedIdentities, and tells people in events.
//
//	Accepted   a policy allows it                   package credentials
//	Created    the credential is in Azure           package credentials
//	Usable     Entra accepted a token               package probe
//	Ready      all of them                          here, out of the others
//
// Several controllers write to one object: each changes its own conditions on
// the newest version.
package record

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federation/policy"
)

// Reasons of conditions, and of the events about them.
const (
	// Accepted.
	ReasonAllowed         = "Allowed"
	ReasonNotAllowed      = "NotAllowed"
	ReasonOtherTenant     = "OtherTenant"
	ReasonInvalid         = "Invalid"
	ReasonLookupFailed    = "LookupFailed"
	ReasonLookupForbidden = "LookupForbidden"
	// Created.
	ReasonCreated          = "Created"
	ReasonForeign          = "Foreign"
	ReasonPending          = "Pending"
	ReasonChanging         = "Changing"
	ReasonNotAccepted      = "NotAccepted"
	ReasonNoServiceAccount = "NoServiceAccount"
	ReasonNoIssuer         = "NoIssuer"
	ReasonDuplicate        = "Duplicate"
	ReasonTaken            = "Taken"
	ReasonLimitReached     = "LimitReached"
	ReasonIdentityNotFound = "IdentityNotFound"
	ReasonForbidden        = "Forbidden"
	ReasonThrottled        = "Throttled"
	ReasonAzureError       = "AzureError"
	// Of events only. Events that differ in nothing but their text are one event.
	ReasonRestored  = "Restored"  // it was missing in Azure
	ReasonCorrected = "Corrected" // it was another one in Azure
	ReasonAbandoned = "Abandoned" // it is left behind there
	// Usable.
	ReasonExchanged = "Exchanged"
	ReasonWaiting   = "Waiting"
	ReasonNotProbed = "NotProbed"
	// Ready.
	ReasonReady    = "Ready"
	ReasonRemoving = "Removing"
)

// Names of indexes.
const (
	// IndexIdentity is the key of the identity that a FederatedIdentity claims.
	IndexIdentity = "identity"
	// IndexServiceAccount is spec.serviceAccountName.
	IndexServiceAccount = "serviceAccount"
)

// Index adds the indexes.
func Index(ctx context.Context, x client.FieldIndexer) error {
	if err := x.IndexField(ctx, &lanyard.FederatedIdentity{}, IndexIdentity, func(o client.Object) []string {
		return []string{IdentityKey(o.(*lanyard.FederatedIdentity))}
	}); err != nil {
		return err
	}
	return x.IndexField(ctx, &lanyard.FederatedIdentity{}, IndexServiceAccount, func(o client.Object) []string {
		return []string{o.(*lanyard.FederatedIdentity).Spec.ServiceAccountName}
	})
}

// IdentityKey is equal for FederatedIdentities that name an identity alike.
func IdentityKey(f *lanyard.FederatedIdentity) string {
	if f.Spec.ResourceID == "" {
		return azure.Fold(f.Spec.ClientID)
	}
	if key := policy.Key(f.Spec.ResourceID); key != "" {
		return key
	}
	return f.Spec.ResourceID // refused, but by somebody
}

// Write changes the status of a FederatedIdentity; one that is gone has none.
// It returns the object as it is now, and whether it differs from f.
func Write(ctx context.Context, c client.Client, live client.Reader, f *lanyard.FederatedIdentity, change func(*lanyard.FederatedIdentity)) (*lanyard.FederatedIdentity, bool, error) {
	const attempts = 5
	for n := 1; ; n++ {
		next := f.DeepCopy()
		change(next)
		next.Status.ObservedGeneration = next.Generation
		summarize(next)
		if equality.Semantic.DeepEqual(f.Status, next.Status) {
			return f, n > 1, nil
		}
		err := c.Status().Patch(ctx, next, client.MergeFromWithOptions(f, client.MergeFromWithOptimisticLock{}))
		switch {
		case err == nil:
			return next, true, nil
		case apierrors.IsNotFound(err):
			return f, false, nil
		case !apierrors.IsConflict(err) || n == attempts:
			return f, false, fmt.Errorf("writing the status of FederatedIdentity %s/%s: %w", f.Namespace, f.Name, err)
		}
		var fresh lanyard.FederatedIdentity
		if err := live.Get(ctx, client.ObjectKeyFromObject(f), &fresh); err != nil {
			return f, false, client.IgnoreNotFound(err)
		}
		if fresh.UID != f.UID {
			return f, false, nil
		}
		f = &fresh
	}
}

// Set sets a condition and reports whether its status or reason is another one
// than before.
func Set(f *lanyard.FederatedIdentity, kind string, status metav1.ConditionStatus, reason, message string) (news bool) {
	old := meta.FindStatusCondition(f.Status.Conditions, kind)
	news = old == nil || old.Status != status || old.Reason != reason
	meta.SetStatusCondition(&f.Status.Conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: Clip(message, 32<<10), ObservedGeneration: f.Generation})
	return news
}

// Is reports whether a condition has the status.
func Is(f *lanyard.FederatedIdentity, kind string, status metav1.ConditionStatus) bool {
	c := meta.FindStatusCondition(f.Status.Conditions, kind)
	return c != nil && c.Status == status
}

// summarize makes Ready out of the other conditions: the first that is not True
// gives the reason.
func summarize(f *lanyard.FederatedIdentity) {
	if !f.DeletionTimestamp.IsZero() {
		why := "the credential is being removed"
		if c := meta.FindStatusCondition(f.Status.Conditions, lanyard.ConditionCreated); c != nil && c.Status == metav1.ConditionUnknown {
			why = c.Message
		}
		Set(f, lanyard.ConditionReady, metav1.ConditionFalse, ReasonRemoving, why)
		return
	}
	for _, kind := range []string{lanyard.ConditionAccepted, lanyard.ConditionCreated, lanyard.ConditionUsable} {
		c := meta.FindStatusCondition(f.Status.Conditions, kind)
		switch {
		case c == nil:
			Set(f, lanyard.ConditionReady, metav1.ConditionFalse, ReasonPending, "not looked at yet: "+kind)
			return
		case c.Status == metav1.ConditionTrue, kind == lanyard.ConditionUsable && c.Reason == ReasonNotProbed:
			continue
		default:
			Set(f, lanyard.ConditionReady, metav1.ConditionFalse, c.Reason, c.Message)
			return
		}
	}
	Set(f, lanyard.ConditionReady, metav1.ConditionTrue, ReasonReady, "tokens of the service account are good for the identity")
}

// Events records an event on a FederatedIdentity and on its service account.
type Events struct {
	Recorder events.EventRecorder
	Accounts client.Reader // cached metadata
}

// About records one; warn says whether something is wrong.
func (e Events) About(ctx context.Context, f *lanyard.FederatedIdentity, warn bool, reason, action, note string) {
	kind := corev1.EventTypeNormal
	if warn {
		kind = corev1.EventTypeWarning
	}
	note = Clip(note, 1000)
	var about runtime.Object = f.DeepCopy()
	e.Recorder.Eventf(about, nil, kind, reason, action, "%s", note)
	account := Account()
	if err := e.Accounts.Get(ctx, client.ObjectKey{Namespace: f.Namespace, Name: f.Spec.ServiceAccountName}, account); err != nil {
		return // then there is nobody to tell
	}
	e.Recorder.Eventf(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "ServiceAccount", Namespace: account.Namespace, Name: account.Name, UID: account.UID, ResourceVersion: account.ResourceVersion,
	}, about, kind, reason, action, "%s", note)
}

// Account is an empty ServiceAccount of which only the metadata is read.
func Account() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}}
}

// Namespace is an empty Namespace of which only the metadata is read.
func Namespace() *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
}

// Clip makes text fit into most bytes of one line.
func Clip(text string, most int) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= most {
		return text
	}
	text = text[:most-3]
	for !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text + "..."
}
