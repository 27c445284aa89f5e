// Package survey reads what a migration is planned from: objects of the cluster,
// what nmi has recorded, and what Azure knows of the identities. It changes
// nothing.
package survey

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/credential"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/token"
)

// A Directory tells of identities in Azure. A *federated.Client is one.
type Directory interface {
	Find(ctx context.Context, clientID string) (federated.Parent, error)
	FindResource(ctx context.Context, resourceID string) (federated.Parent, error)
	List(ctx context.Context, p federated.Parent) ([]federated.Credential, error)
}

// An Exchanger asks Entra for tokens. An *entra.Client is one.
type Exchanger interface {
	Token(ctx context.Context, app entra.Application, cred entra.Credential, resource string) (token.Token, error)
}

// A Survey reads one cluster. Objects, Kube, Entra, Resource and Step must be set.
type Survey struct {
	Objects dynamic.Interface
	Kube    kubernetes.Interface
	Azure   Directory // nil: Azure is not asked
	Entra   Exchanger

	Authority string    // of Entra; empty means the public cloud's
	Resource  string    // that tokens are asked for
	Audit     io.Reader // nmi's log; nil means the logs of nmi's pods

	Step func(format string, args ...any) // tells what could not be read
}

// Read reads what a plan is made from. Bindings and identities are those of the
// whole cluster, because they reach across namespaces.
func (v *Survey) Read(ctx context.Context, o migrate.Options) (migrate.World, error) {
	var w migrate.World
	identities, err := listAs[v1.AzureIdentity](ctx, v, "azureidentities", (*v1.AzureIdentity).Normalize)
	if err != nil {
		return w, err
	}
	w.Identities = identities
	if w.Bindings, err = listAs[v1.AzureIdentityBinding](ctx, v, "azureidentitybindings", (*v1.AzureIdentityBinding).Normalize); err != nil {
		return w, err
	}
	if w.Exceptions, err = listAs[v1.AzurePodIdentityException](ctx, v, "azurepodidentityexceptions", (*v1.AzurePodIdentityException).Normalize); err != nil {
		return w, err
	}
	for _, k := range migrate.Kinds() {
		list, err := List(ctx, v.Objects, k.Resource, o.Namespace, k.Kind)
		if err != nil {
			return w, err
		}
		w.Workloads = append(w.Workloads, list...)
	}
	gvr, _ := migrate.ResourceOf(migrate.KindServiceAccount)
	if w.Accounts, err = List(ctx, v.Objects, gvr, o.Namespace, migrate.KindServiceAccount); err != nil {
		return w, err
	}
	if o.Federation == migrate.FederationController {
		gvr, _ := migrate.ResourceOf(migrate.KindFederatedIdentity)
		w.Federated, err = List(ctx, v.Objects, gvr, o.Namespace, migrate.KindFederatedIdentity)
		if apierrors.IsNotFound(err) {
			return w, fmt.Errorf("this cluster does not have the federation controller: install it, or use --federation=azure (%w)", err)
		}
		if err != nil {
			return w, err
		}
	}
	for _, kind := range []string{migrate.KindRoleBinding, migrate.KindClusterRoleBinding} {
		gvr, _ := migrate.ResourceOf(kind)
		list, err := List(ctx, v.Objects, gvr, "", kind)
		if err != nil {
			return w, err
		}
		w.Roles = append(w.Roles, list...)
	}
	if w.Requests, err = v.audit(ctx); err != nil {
		return w, err
	}
	needed := migrate.Needed(w, o)
	w.Azure = v.facts(ctx, needed, o)
	w.Proven, err = v.proven(ctx, w, needed)
	return w, err
}

// List lists objects of a kind, a page at a time.
func List(ctx context.Context, objects dynamic.Interface, gvr schema.GroupVersionResource, namespace, kind string) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	options := metav1.ListOptions{Limit: 500}
	for {
		list, err := objects.Resource(gvr).Namespace(namespace).List(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("listing %s: %w", gvr.Resource, err)
		}
		for i := range list.Items {
			o := &list.Items[i]
			o.SetAPIVersion(gvr.GroupVersion().String()) // members of some lists do not say what they are
			o.SetKind(kind)
			all = append(all, o)
		}
		if options.Continue = list.GetContinue(); options.Continue == "" {
			return all, nil
		}
	}
}

// listAs lists objects of Pod Identity in all namespaces.
func listAs[T any](ctx context.Context, v *Survey, resource string, normalize func(*T)) ([]*T, error) {
	list, err := List(ctx, v.Objects, v1.GroupVersion().WithResource(resource), "", "")
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("this cluster does not have the custom resources of Pod Identity v1: there is nothing to migrate (%w)", err)
	}
	if err != nil {
		return nil, err
	}
	var all []*T
	for _, o := range list {
		x := new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, x); err != nil {
			return nil, fmt.Errorf("reading %s %s/%s: %w", resource, o.GetNamespace(), o.GetName(), err)
		}
		normalize(x)
		all = append(all, x)
	}
	return all, nil
}

// maxLog is how much of a pod's log is read, from its end.
const maxLog = 32 << 20

// audit reads what nmi has recorded. Pods whose log cannot be read are passed
// over: then there is less evidence.
func (v *Survey) audit(ctx context.Context) ([]migrate.Request, error) {
	if v.Audit != nil {
		return migrate.ReadAudit(v.Audit)
	}
	var all []migrate.Request
	for _, selector := range []string{"component=nmi", "app.kubernetes.io/component=nmi"} {
		pods, err := v.Kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return nil, fmt.Errorf("listing the pods of nmi: %w", err)
		}
		for i := range pods.Items {
			if !isNMI(&pods.Items[i]) {
				continue
			}
			found, err := v.auditOf(ctx, &pods.Items[i])
			if err != nil {
				v.Step("the log of pod %s/%s tells nothing: %v", pods.Items[i].Namespace, pods.Items[i].Name, err)
				continue
			}
			all = append(all, found...)
		}
	}
	return all, nil
}

// isNMI reports whether a pod is a node agent: anybody may give a pod its labels,
// but not the host's network.
func isNMI(p *corev1.Pod) bool { return p.Spec.HostNetwork && p.Spec.NodeName != "" }

func (v *Survey) auditOf(ctx context.Context, p *corev1.Pod) ([]migrate.Request, error) {
	lines, limit := int64(200_000), int64(maxLog)
	log, err := v.Kube.CoreV1().Pods(p.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{TailLines: &lines, LimitBytes: &limit}).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	return migrate.ReadAudit(io.LimitReader(log, maxLog))
}

// facts asks Azure about identities, a few at a time.
func (v *Survey) facts(ctx context.Context, needed []*v1.AzureIdentity, o migrate.Options) map[string]migrate.Facts {
	all := map[string]migrate.Facts{}
	if v.Azure == nil {
		return all
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	free := make(chan struct{}, 8)
	for _, id := range needed {
		if id.Spec.Type != v1.UserAssignedMSI && o.TenantID != "" && !strings.EqualFold(id.Spec.TenantID, o.TenantID) {
			continue // the plan refuses it
		}
		wg.Go(func() {
			free <- struct{}{}
			defer func() { <-free }()
			f, err := v.factsOf(ctx, id)
			if err != nil {
				f = migrate.Facts{Problem: err.Error()}
			}
			mu.Lock()
			defer mu.Unlock()
			all[id.Namespace+"/"+id.Name] = f
		})
	}
	wg.Wait()
	return all
}

func (v *Survey) factsOf(ctx context.Context, id *v1.AzureIdentity) (migrate.Facts, error) {
	var f migrate.Facts
	var err error
	if id.Spec.Type == v1.UserAssignedMSI {
		f.Parent, err = v.Azure.FindResource(ctx, id.Spec.ResourceID)
	} else {
		f.Parent, err = v.Azure.Find(ctx, id.Spec.ClientID)
	}
	if err != nil {
		return f, err
	}
	f.Credentials, err = v.Azure.List(ctx, f.Parent)
	return f, err
}

// proven finds out which identities Pod Identity does give: those that a machine
// has, those that nmi recorded, and applications whose Secret Entra accepts.
func (v *Survey) proven(ctx context.Context, w migrate.World, needed []*v1.AzureIdentity) (map[string]bool, error) {
	proven := map[string]bool{}
	for _, q := range w.Requests {
		if q.Issued != "" {
			proven[q.Issued] = true
		}
	}
	assigned, err := listAs[v1.AzureAssignedIdentity](ctx, v, "azureassignedidentities", func(*v1.AzureAssignedIdentity) {})
	if err != nil {
		return nil, err
	}
	for _, id := range needed {
		name := id.Namespace + "/" + id.Name
		if id.Spec.Type != v1.UserAssignedMSI {
			if !proven[name] {
				proven[name] = v.secretWorks(ctx, id) == nil
			}
			continue
		}
		for _, a := range assigned {
			ref := a.Spec.AzureIdentityRef
			if ref != nil && ref.Namespace == id.Namespace && ref.Name == id.Name && ref.Spec.Type == id.Spec.Type &&
				strings.EqualFold(ref.Spec.ResourceID, id.Spec.ResourceID) && a.Status.Status == v1.AssignedIDAssigned {
				proven[name] = true
			}
		}
	}
	return proven, nil
}

// secretWorks tries the Secret of a service principal, as nmi would.
func (v *Survey) secretWorks(ctx context.Context, id *v1.AzureIdentity) error {
	s := &id.Spec
	secret, err := v.Kube.CoreV1().Secrets(cmp.Or(s.ClientPassword.Namespace, id.Namespace)).Get(ctx, s.ClientPassword.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if secret.Namespace != id.Namespace {
		return errors.New("the Secret is of another namespace, where whoever wrote the AzureIdentity may have no rights")
	}
	read := credential.Password
	if s.Type == v1.ServicePrincipalCertificate {
		read = credential.Certificate
	}
	cred, err := read(secret.Data)
	if err != nil {
		return err
	}
	_, err = v.Entra.Token(ctx, entra.Application{Authority: v.Authority, Tenant: s.TenantID, ClientID: s.ClientID}, cred, v.Resource)
	return err
}

// Issuer returns the issuer of the cluster's service-account tokens, as its
// discovery document says.
func (v *Survey) Issuer(ctx context.Context) (string, error) {
	raw, err := v.Kube.Discovery().RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(ctx)
	if err != nil {
		return "", fmt.Errorf("asking the API server for its issuer (--issuer says it instead): %w", err)
	}
	var d struct {
		Issuer string `json:"issuer"`
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		return "", fmt.Errorf("the API server's discovery document cannot be read: give --issuer (%w)", err)
	}
	if d.Issuer == "" {
		return "", errors.New("the API server's discovery document has no issuer: give --issuer")
	}
	return d.Issuer, nil
}

// Workloads are the names, as KIND/NAME, of what has pods in a namespace and
// stands for itself.
func (v *Survey) Workloads(ctx context.Context, namespace string) ([]string, error) {
	var names []string
	for _, k := range migrate.Kinds() {
		list, err := List(ctx, v.Objects, k.Resource, namespace, k.Kind)
		if err != nil {
			return nil, err
		}
		for _, o := range list {
			if metav1.GetControllerOf(o) == nil {
				names = append(names, strings.ToLower(k.Kind)+"/"+o.GetName())
			}
		}
	}
	return names, nil
}
