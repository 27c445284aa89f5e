package estate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/lab/image"
)

// fieldOwner marks what an estate has applied.
const fieldOwner = "lanyard-estate"

// apply applies every document of the YAML streams, server-side, in order.
func apply(ctx context.Context, c client.Client, streams ...[]byte) ([]*unstructured.Unstructured, error) {
	var applied []*unstructured.Unstructured
	for _, stream := range streams {
		d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096)
		for {
			u := &unstructured.Unstructured{}
			err := d.Decode(&u.Object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return applied, fmt.Errorf("reading a manifest: %w", err)
			}
			if len(u.Object) == 0 {
				continue // only comments
			}
			if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(fieldOwner), client.ForceOwnership); err != nil {
				return applied, fmt.Errorf("applying %s %s: %w", u.GetKind(), u.GetName(), err)
			}
			applied = append(applied, u)
		}
	}
	return applied, nil
}

// waitReady waits until every workload among objects says that it is ready.
func waitReady(ctx context.Context, d dynamic.Interface, objects []*unstructured.Unstructured) error {
	for _, o := range objects {
		ready, watched := readiness[o.GroupVersionKind()]
		if !watched {
			continue
		}
		resource := d.Resource(ready.resource).Namespace(o.GetNamespace())
		if err := waitFor(ctx, resource, o.GetName(), ready.done); err != nil {
			return fmt.Errorf("%s %s is not ready: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// readiness says how each kind of workload tells that it is ready: the text
// is what is missing, empty when nothing is.
var readiness = map[schema.GroupVersionKind]struct {
	resource schema.GroupVersionResource
	done     func(map[string]any) (missing string, err error)
}{
	appsv1.SchemeGroupVersion.WithKind("Deployment"): {appsv1.SchemeGroupVersion.WithResource("deployments"), deploymentReady},
	appsv1.SchemeGroupVersion.WithKind("DaemonSet"):  {appsv1.SchemeGroupVersion.WithResource("daemonsets"), daemonSetReady},
}

// notSeen is what is missing while a controller has yet to look.
const notSeen = "its controller has not seen it yet"

func deploymentReady(object map[string]any) (string, error) {
	var d appsv1.Deployment
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object, &d); err != nil {
		return "", err
	}
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	if d.Status.ObservedGeneration < d.Generation {
		return notSeen, nil
	}
	if have := min(d.Status.AvailableReplicas, d.Status.UpdatedReplicas); have < want {
		return fmt.Sprintf("%d of %d replicas are available", have, want), nil
	}
	return "", nil
}

func daemonSetReady(object map[string]any) (string, error) {
	var d appsv1.DaemonSet
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object, &d); err != nil {
		return "", err
	}
	want := d.Status.DesiredNumberScheduled
	if d.Status.ObservedGeneration < d.Generation || want == 0 {
		return notSeen, nil
	}
	if d.Status.NumberReady < want {
		return fmt.Sprintf("%d of %d pods are ready", d.Status.NumberReady, want), nil
	}
	return "", nil
}

// waitFor watches one object until done says that nothing is missing.
func waitFor(ctx context.Context, r dynamic.ResourceInterface, name string, done func(map[string]any) (string, error)) error {
	missing := "it does not exist"
	for {
		w, err := r.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			return fmt.Errorf("%s (%w)", missing, err)
		}
		finished, err := watchUntil(ctx, w, done, &missing)
		w.Stop()
		if finished || err != nil {
			return err
		}
	}
}

func watchUntil(ctx context.Context, w watch.Interface, done func(map[string]any) (string, error), missing *string) (bool, error) {
	for {
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("%s: %w", *missing, context.Cause(ctx))
		case e, open := <-w.ResultChan():
			if !open {
				return false, nil // the API server closes watches when it likes
			}
			u, ok := e.Object.(*unstructured.Unstructured)
			if !ok || e.Type == watch.Deleted || e.Type == watch.Error {
				continue
			}
			m, err := done(u.Object)
			if err != nil {
				return false, err
			}
			if *missing = m; m == "" {
				return true, nil
			}
		}
	}
}

// secret is as whom a controller acts in Azure.
func secret(namespace, name string, values map[string]string) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		StringData: values,
	}
}

// secrets are those that the manifests of mic and of the federation controller
// read; they must be there before.
func (e *Estate) secrets() []client.Object {
	const system = "lanyard-system"
	admin := e.Cloud.adminSecret()
	return []client.Object{
		secret(metav1.NamespaceDefault, "aadpodidentity-admin-secret", admin),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}},
		secret(system, "lanyard-federation-azure", map[string]string{
			"CLOUD": admin["Cloud"], "TENANT_ID": admin["TenantID"], "CLIENT_ID": admin["ClientID"], "CLIENT_SECRET": admin["ClientSecret"],
		}),
	}
}

// scheme returns the kinds that an estate's client knows by type.
func scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kubernetes.AddToScheme, v1.AddToScheme, lanyard.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Programs are the binaries that Config.BinDir holds.
func Programs() []string {
	return []string{"kube", "pause", "mic", "nmi", "webhook", "proxy", "federation", "workload"}
}

// images are what the pods of Lanyard and of the demo run. The token proxy and
// what leads a pod to it are one program.
func images(binDir string, caCerts []byte) []image.Image {
	made := func(name, binary, user string, entrypoint ...string) image.Image {
		return image.Image{Ref: "lanyard/" + name + ":dev", Binary: filepath.Join(binDir, binary), Entrypoint: entrypoint, User: user, CACerts: caCerts}
	}
	const nobody, proxy = "65532:65532", "1501:1501"
	return []image.Image{
		made("mic", "mic", nobody), made("nmi", "nmi", nobody), made("webhook", "webhook", nobody), made("federation", "federation", nobody),
		made("proxy", "proxy", proxy), made("proxy-init", "proxy", "", "/proxy", "init"), made("workload", "workload", nobody),
	}
}

// install puts Lanyard on the cluster, as a person with kubectl would.
func (e *Estate) install(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("it took longer than two minutes"))
	defer cancel()
	e.config.Step("building and loading the images of mic, nmi, webhook, proxy, federation and workload")
	if err := e.Lab.LoadImages(ctx, images(e.config.BinDir, e.Cloud.CACertPEM())...); err != nil {
		return err
	}
	e.config.Step("installing the custom resources, mic, nmi, the webhook, the federation controller and the admission policies")
	crds, err := deploy.CRDs()
	if err != nil {
		return err
	}
	manifests, err := deploy.Manifests("access", "mic", "nmi", "webhook", "federation")
	if err != nil {
		return err
	}
	for i, m := range manifests {
		if manifests[i], err = deploy.Fill(m, map[string]string{"AZURE_TENANT_ID": e.Cloud.Tenant.ID}); err != nil {
			return err
		}
	}
	if _, err := apply(ctx, e.Objects, crds...); err != nil {
		return err
	}
	for _, o := range e.secrets() {
		if err := e.Objects.Create(ctx, o); err != nil {
			return fmt.Errorf("creating %s in %s: %w", o.GetName(), o.GetNamespace(), err)
		}
	}
	installed, err := apply(ctx, e.Objects, manifests...)
	if err != nil {
		return err
	}
	e.config.Step("waiting until mic, nmi, the webhook and the federation controller are ready")
	d, err := e.dynamic()
	if err != nil {
		return err
	}
	return waitReady(ctx, d, installed)
}
