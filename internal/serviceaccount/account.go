package serviceaccount

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/federated"
)

// NewCluster returns a client for the user that config authenticates.
func NewCluster(config *rest.Config) (client.Client, error) {
	s := runtime.NewScheme()
	if err := corev1.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("registering types: %w", err)
	}
	c, err := client.New(config, client.Options{Scheme: s})
	if err != nil {
		return nil, fmt.Errorf("preparing to talk to the API server: %w", err)
	}
	return c, nil
}

// createAccount makes the service account, or sets the annotations of the one
// that exists and touches nothing else of it.
func (r *Runner) createAccount(ctx context.Context) error {
	o := r.Options
	annotations, err := r.annotations(ctx)
	if err != nil {
		return err
	}
	c, err := r.connectCluster()
	if err != nil {
		return err
	}
	object := "service account " + o.Namespace + "/" + o.Name
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name}}
	action, detail := created, ""
	switch err := c.Get(ctx, client.ObjectKeyFromObject(account), account); {
	case apierrors.IsNotFound(err):
		account.Annotations = annotations
		var how []client.CreateOption
		if o.DryRun {
			how = append(how, client.DryRunAll)
		}
		err = c.Create(ctx, account, how...)
		if !apierrors.IsAlreadyExists(err) { // somebody was faster: then it is annotated
			if err != nil {
				return r.explainCluster(err, "create")
			}
			break
		}
		fallthrough
	case err == nil:
		if action, detail, err = r.annotate(ctx, c, account, annotations); err != nil {
			return err
		}
	default:
		return r.explainCluster(err, "get")
	}
	r.result.ServiceAccount = &Account{Namespace: o.Namespace, Name: o.Name, Annotations: annotations}
	r.step(PhaseAccount, action, object, "", detail)
	return nil
}

// annotations are those that the webhook reads.
func (r *Runner) annotations(ctx context.Context) (map[string]string, error) {
	out := map[string]string{
		workloadidentity.AnnotationTokenExpiration: strconv.Itoa(int(r.Options.Expiration.Seconds())),
	}
	a, err := r.connect(ctx)
	if err != nil {
		return nil, err
	}
	p := federated.Parent{ClientID: r.Options.ApplicationClientID, TenantID: a.TenantID}
	switch {
	case r.pending:
		p.ClientID = "(of the identity that is created)"
	case p.ClientID == "":
		if p, err = r.identity(ctx); err != nil {
			return nil, err
		}
	}
	out[workloadidentity.AnnotationClientID], out[workloadidentity.AnnotationTenantID] = p.ClientID, p.TenantID
	return out, nil
}

func (r *Runner) annotate(ctx context.Context, c client.Client, account *corev1.ServiceAccount, annotations map[string]string) (action, detail string, err error) {
	change := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		before, had := account.Annotations[key]
		if had && before == annotations[key] {
			continue
		}
		change[key] = annotations[key]
		if had {
			detail += fmt.Sprintf("%s was %q; ", key, before)
		}
	}
	if len(change) == 0 {
		return unchanged, "", nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": change}})
	if err != nil {
		return "", "", err
	}
	var how []client.PatchOption
	if r.Options.DryRun {
		how = append(how, client.DryRunAll)
	}
	if err := c.Patch(ctx, account, client.RawPatch(types.MergePatchType, patch), how...); err != nil {
		return "", "", r.explainCluster(err, "patch")
	}
	return updated, detail + "pods that run already keep what they were given: restart them", nil
}

func (r *Runner) deleteAccount(ctx context.Context) error {
	c, err := r.connectCluster()
	if err != nil {
		return err
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: r.Options.Namespace, Name: r.Options.Name}}
	object := "service account " + account.Namespace + "/" + account.Name
	var how []client.DeleteOption
	if r.Options.DryRun {
		how = append(how, client.DryRunAll)
	}
	switch err := c.Delete(ctx, account, how...); {
	case apierrors.IsNotFound(err):
		r.step(PhaseAccount, absent, object, "", "")
	case err != nil:
		return r.explainCluster(err, "delete")
	default:
		r.step(PhaseAccount, deleted, object, "", "")
	}
	return nil
}

func (r *Runner) explainCluster(err error, verb string) error {
	o := r.Options
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: create it with: kubectl create namespace %s", err, o.Namespace)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("not allowed: your user of the cluster needs the verb %s on serviceaccounts in namespace %s: %w", verb, o.Namespace, err)
	}
	return fmt.Errorf("service account %s/%s: %w", o.Namespace, o.Name, err)
}

// Names lists namespaces, or the service accounts of one, for completion.
func Names(ctx context.Context, c client.Client, namespace string) ([]string, error) {
	var objects client.ObjectList = &corev1.ServiceAccountList{}
	if namespace == "" {
		objects = &corev1.NamespaceList{}
	}
	if err := c.List(ctx, objects, client.InNamespace(namespace)); err != nil {
		return nil, err
	}
	var names []string
	switch l := objects.(type) {
	case *corev1.ServiceAccountList:
		for i := range l.Items {
			names = append(names, l.Items[i].Name)
		}
	case *corev1.NamespaceList:
		for i := range l.Items {
			names = append(names, l.Items[i].Name)
		}
	}
	return names, nil
}
