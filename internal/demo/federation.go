package demo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyardv1 "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// Federations that nobody makes by hand: document 002 names one-to-one,
// many-to-one and one-to-many.
const batchAccount = "saman-batch"

// federationObjects let the namespace of document 003 claim two identities:
// one by a second service account, the other by the first.
func federationObjects(first, second Identity) []client.Object {
	account := func(name string, annotations map[string]string) client.Object {
		return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: samanNamespace, Annotations: annotations}}
	}
	return []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: samanNamespace}},
		&lanyardv1.FederationPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: samanNamespace},
			Spec: lanyardv1.FederationPolicySpec{
				Namespaces: []string{samanNamespace},
				Identities: []lanyardv1.PolicyIdentity{{ClientID: first.ClientID}, {ClientID: second.ClientID}},
			},
		},
		account(samanAccount, map[string]string{
			workloadidentity.AnnotationClientID: first.ClientID,
			lanyardv1.AnnotationClientIDs:       second.ClientID,
		}),
		account(batchAccount, map[string]string{workloadidentity.AnnotationClientID: first.ClientID}),
	}
}

// usable waits until Entra accepts the tokens of a service account for an
// identity, as `kubectl wait --for=condition=Usable` does.
func (s *Story) usable(ctx context.Context, account string, identity Identity) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	last := "there is no FederatedIdentity for it"
	for {
		w, err := s.Objects.Watch(ctx, &lanyardv1.FederatedIdentityList{}, client.InNamespace(samanNamespace))
		if err != nil {
			return fmt.Errorf("watching the federated identities: %w", err)
		}
		done, err := untilUsable(ctx, w, account, identity.ClientID, &last)
		w.Stop()
		if err != nil {
			return fmt.Errorf("the service account %s is not yet %s: %s: %w", account, identity.Name, last, err)
		}
		if done {
			return nil
		}
	}
}

func untilUsable(ctx context.Context, w watch.Interface, account, clientID string, last *string) (bool, error) {
	for {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case e, open := <-w.ResultChan():
			if !open {
				return false, nil // the API server closes watches when it likes
			}
			if e.Type == watch.Error {
				return false, errors.New("the API server ended the watch")
			}
			f, ok := e.Object.(*lanyardv1.FederatedIdentity)
			if !ok || e.Type == watch.Deleted || f.Spec.ServiceAccountName != account || f.Spec.ClientID != clientID {
				continue
			}
			if apimeta.IsStatusConditionTrue(f.Status.Conditions, lanyardv1.ConditionUsable) {
				return true, nil
			}
			for _, c := range f.Status.Conditions {
				if c.Status != metav1.ConditionTrue {
					*last = c.Reason + ": " + c.Message
				}
			}
		}
	}
}

// federations tells of every FederatedIdentity of the namespace, in its
// controller's words.
func (s *Story) federations(ctx context.Context) ([]string, error) {
	var list lanyardv1.FederatedIdentityList
	if err := s.Objects.List(ctx, &list, client.InNamespace(samanNamespace)); err != nil {
		return nil, fmt.Errorf("listing the federated identities: %w", err)
	}
	var told []string
	for i := range list.Items {
		f := &list.Items[i]
		line := fmt.Sprintf("%s: client id %s, credential %s", f.Spec.ServiceAccountName, f.Status.ClientID, f.Status.CredentialName)
		if c := apimeta.FindStatusCondition(f.Status.Conditions, lanyardv1.ConditionCreated); c != nil {
			line += " (" + c.Reason + ")"
		}
		if t := f.Status.UsableSince; t != nil {
			line += ", usable since " + t.UTC().Format("15:04:05")
		}
		told = append(told, line)
	}
	slices.Sort(told)
	return told, nil
}
