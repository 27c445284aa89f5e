// Package servingcert keeps the certificate that the webhook serves and the API
// server's trust in it.
//
//	Keeper: Secret ──> renew what is due ──> webhook configuration trusts it ──> serve it
//	Files:  a directory that someone else keeps ──> serve it
//
// What is due, and when to ask again, is a function of a Policy, the Secret's
// content and an instant. Secret and names are those of azure-workload-identity,
// whose Secret is taken over as it is.
package servingcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// A Keeper keeps the webhook's serving certificate. A Secret holds it with its
// authority; every replica reads it over the API (nothing is mounted), and
// whichever finds something due writes it: a replica that comes second sees a
// conflict and takes what the first has written.
//
// A certificate is trusted before it is served, so that the API server never
// meets one that it does not trust. Both objects are watched: a removed Secret
// or an emptied caBundle is restored at once.
type Keeper struct {
	Client        dynamic.Interface // must be set
	Namespace     string            // of the Secret
	Secret        string
	Configuration string   // name of the MutatingWebhookConfiguration
	Webhook       string   // name of the webhook in it
	Names         []string // host names and addresses that the API server may call; at least one
	Policy        Policy   // zero means its defaults

	Now      func() time.Time        // nil means time.Now
	Replaced func(expires time.Time) // called whenever another certificate is served; nil means nobody is told
	Logger   *slog.Logger            // nil means slog.Default

	mu     sync.RWMutex
	served keyMaterial
}

// Run keeps the certificate until the context ends. While the API server does
// not answer it tries again, at most 5 seconds apart, and serves what it has.
func (k *Keeper) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		follow(ctx, "secret", k.named(k.secrets(), k.Secret), changed)
		return nil
	})
	g.Go(func() error {
		follow(ctx, "mutatingwebhookconfiguration", k.named(k.configurations(), k.Configuration), changed)
		return nil
	})
	g.Go(func() error { return k.loop(ctx, changed) })
	return g.Wait()
}

func (k *Keeper) loop(ctx context.Context, changed <-chan struct{}) error {
	const patience = 5 * time.Second
	pause := patience / 32
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
		next, err := k.reconcile(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			k.logger().WarnContext(ctx, "keeping the serving certificate", "err", err, "retryIn", pause)
			timer.Reset(pause)
			pause = min(2*pause, patience)
		default:
			pause = patience / 32
			timer.Reset(max(next.Sub(k.now()), time.Second))
		}
	}
}

// reconcile makes Secret, webhook configuration and served certificate agree,
// and returns when the next of them is due.
func (k *Keeper) reconcile(ctx context.Context) (time.Time, error) {
	policy := k.Policy.withDefaults()
	material, err := k.stored(ctx, policy)
	if err != nil {
		return time.Time{}, err
	}
	if err := k.trust(ctx, material.bundle()); err != nil {
		return time.Time{}, err
	}
	k.serve(ctx, material)
	return policy.next(material), nil
}

// stored returns what the Secret holds, after having renewed what was due.
func (k *Keeper) stored(ctx context.Context, policy Policy) (keyMaterial, error) {
	secret, err := k.secrets().Get(ctx, k.Secret, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return keyMaterial{}, fmt.Errorf("getting secret %s/%s: %w", k.Namespace, k.Secret, err)
	}
	var have keyMaterial
	// Manifests bring the Secret along empty: that is no mistake.
	if missing {
		secret = &unstructured.Unstructured{}
	}
	if data := secretData(secret); len(data) > 0 {
		if have, err = parseMaterial(data); err != nil {
			k.logger().WarnContext(ctx, "the secret holds no usable certificate", "secret", k.Secret, "err", err)
		}
	}
	restored := have.key == nil
	if restored {
		// What is served is still trusted: put it back rather than make all replicas change.
		have = k.current()
	}
	want, reason, err := policy.renew(have, k.now(), k.Names)
	if err != nil {
		return keyMaterial{}, err
	}
	if reason == "" && !restored {
		return want, nil
	}
	data, err := want.data()
	if err != nil {
		return keyMaterial{}, err
	}
	if err := k.write(ctx, secret, missing, data); err != nil {
		return keyMaterial{}, err
	}
	k.logger().InfoContext(ctx, "certificate written", "secret", k.Secret, "reason", reason, "restored", restored, "expires", want.leaf.Leaf.NotAfter)
	return want, nil
}

// write stores data in the Secret unless another replica was faster: then the
// error makes the caller read again.
func (k *Keeper) write(ctx context.Context, secret *unstructured.Unstructured, missing bool, data map[string][]byte) error {
	encoded := map[string]any{}
	for name, v := range data {
		encoded[name] = base64.StdEncoding.EncodeToString(v)
	}
	var err error
	if missing {
		_, err = k.secrets().Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1",
			"kind":       "Secret",
			"metadata":   map[string]any{"name": k.Secret, "namespace": k.Namespace, "labels": map[string]any{"azure-workload-identity.io/system": "true"}},
			"data":       encoded,
		}}, metav1.CreateOptions{})
	} else {
		secret = secret.DeepCopy()
		secret.Object["data"] = encoded
		_, err = k.secrets().Update(ctx, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing secret %s/%s: %w", k.Namespace, k.Secret, err)
	}
	return nil
}

// trust makes the API server trust the bundle for this webhook.
func (k *Keeper) trust(ctx context.Context, bundle []byte) error {
	config, err := k.configurations().Get(ctx, k.Configuration, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("getting mutatingwebhookconfiguration %s: %w", k.Configuration, err)
	}
	webhooks, _, err := unstructured.NestedSlice(config.Object, "webhooks")
	if err != nil {
		return fmt.Errorf("reading mutatingwebhookconfiguration %s: %w", k.Configuration, err)
	}
	encoded := base64.StdEncoding.EncodeToString(bundle)
	for i, w := range webhooks {
		webhook, _ := w.(map[string]any)
		if webhook["name"] != k.Webhook {
			continue
		}
		have, _, _ := unstructured.NestedString(webhook, "clientConfig", "caBundle")
		if have == encoded {
			return nil
		}
		// The test keeps the patch from another webhook if the list has changed since.
		at := fmt.Sprintf("/webhooks/%d", i)
		patch, err := json.Marshal([]map[string]string{
			{"op": "test", "path": at + "/name", "value": k.Webhook},
			{"op": "add", "path": at + "/clientConfig/caBundle", "value": encoded},
		})
		if err != nil {
			return fmt.Errorf("encoding the patch: %w", err)
		}
		if _, err := k.configurations().Patch(ctx, k.Configuration, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("patching mutatingwebhookconfiguration %s: %w", k.Configuration, err)
		}
		k.logger().InfoContext(ctx, "caBundle written", "configuration", k.Configuration)
		return nil
	}
	return fmt.Errorf("mutatingwebhookconfiguration %s has no webhook %s: install it", k.Configuration, k.Webhook)
}

func (k *Keeper) serve(ctx context.Context, m keyMaterial) {
	k.mu.Lock()
	fresh := k.served.leaf.Leaf == nil || !bytes.Equal(k.served.leaf.Certificate[0], m.leaf.Certificate[0])
	k.served = m
	k.mu.Unlock()
	if fresh {
		if k.Replaced != nil {
			k.Replaced(m.leaf.Leaf.NotAfter)
		}
		k.logger().InfoContext(ctx, "certificate served", "serial", m.leaf.Leaf.SerialNumber.Text(16), "expires", m.leaf.Leaf.NotAfter)
	}
}

func (k *Keeper) current() keyMaterial {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.served
}

// GetCertificate is for tls.Config.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	m := k.current()
	if m.leaf.Leaf == nil {
		return nil, errors.New("there is no serving certificate yet")
	}
	return &m.leaf, nil
}

// Ready reports whether there is a certificate that the API server trusts.
func (k *Keeper) Ready() error {
	if err := k.current().serves(k.now(), k.Names); err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	return nil
}

func (k *Keeper) now() time.Time {
	if k.Now == nil {
		return time.Now()
	}
	return k.Now()
}

func (k *Keeper) logger() *slog.Logger {
	if k.Logger == nil {
		return slog.Default()
	}
	return k.Logger
}

func (k *Keeper) secrets() dynamic.ResourceInterface {
	return k.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(k.Namespace)
}

func (k *Keeper) configurations() dynamic.ResourceInterface {
	return k.Client.Resource(schema.GroupVersionResource{
		Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations",
	})
}

// named lists and watches one object, which needs rights on that name only.
func (*Keeper) named(resource dynamic.ResourceInterface, name string) cache.ListerWatcher {
	selector := fields.OneTermEqualSelector("metadata.name", name).String()
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			return resource.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector
			return resource.Watch(ctx, o)
		},
	}
}

// follow signals every change of what lw watches until the context ends. Its
// patience is shorter than client-go's: readiness waits for it.
func follow(ctx context.Context, name string, lw cache.ListerWatcher, changed chan<- struct{}) {
	cache.NewReflectorWithOptions(lw, &unstructured.Unstructured{}, signal(changed), cache.ReflectorOptions{
		Name:    name,
		Backoff: &wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 10, Cap: 5 * time.Second},
	}).RunWithContext(ctx)
}

// secretData decodes the members of a Secret; what is no base64 is left out.
func secretData(secret *unstructured.Unstructured) map[string][]byte {
	encoded, _, _ := unstructured.NestedStringMap(secret.Object, "data")
	data := map[string][]byte{}
	for name, v := range encoded {
		if raw, err := base64.StdEncoding.DecodeString(v); err == nil {
			data[name] = raw
		}
	}
	return data
}

// signal is a store that keeps nothing and says that something has changed.
type signal chan<- struct{}

func (s signal) notify() error {
	select {
	case s <- struct{}{}:
	default: // a signal is already waiting
	}
	return nil
}

func (s signal) Add(any) error               { return s.notify() }
func (s signal) Update(any) error            { return s.notify() }
func (s signal) Delete(any) error            { return s.notify() }
func (s signal) Replace([]any, string) error { return s.notify() }
func (signal) Resync() error                 { return nil }
