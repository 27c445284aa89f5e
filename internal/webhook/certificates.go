package webhook

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
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// Certificates keeps the webhook's serving certificate. A Secret holds it with
// its authority; every replica reads it over the API (nothing is mounted), and
// whichever finds something due writes it: a replica that comes second sees a
// conflict and takes what the first has written.
//
//	Secret ──> renew what is due ──> webhook configuration trusts it ──> serve it
//
// In this order, so that the API server never meets a certificate that it does
// not trust. Both objects are watched: a removed Secret or an emptied caBundle
// is restored at once.
type Certificates struct {
	Client        dynamic.Interface // must be set
	Namespace     string            // of the Secret
	Secret        string
	Configuration string   // name of the MutatingWebhookConfiguration
	Webhook       string   // name of the webhook in it
	Names         []string // host names and addresses that the API server may call; at least one
	Policy        Policy   // zero means its defaults

	Now     func() time.Time // nil means time.Now
	Metrics *Metrics         // nil means none
	Logger  *slog.Logger     // nil means slog.Default

	mu     sync.RWMutex
	served keyMaterial
}

// Run keeps the certificate until the context ends. While the API server does
// not answer it tries again, at most 5 seconds apart, and serves what it has.
func (c *Certificates) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		reflect(ctx, "secret", c.named(c.secrets(), c.Secret), &unstructured.Unstructured{}, signal(changed))
		return nil
	})
	g.Go(func() error {
		reflect(ctx, "mutatingwebhookconfiguration", c.named(c.configurations(), c.Configuration), &unstructured.Unstructured{}, signal(changed))
		return nil
	})
	g.Go(func() error { return c.loop(ctx, changed) })
	return g.Wait()
}

func (c *Certificates) loop(ctx context.Context, changed <-chan struct{}) error {
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
		next, err := c.reconcile(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			c.logger().WarnContext(ctx, "keeping the serving certificate", "err", err, "retryIn", pause)
			timer.Reset(pause)
			pause = min(2*pause, patience)
		default:
			pause = patience / 32
			timer.Reset(max(next.Sub(c.now()), time.Second))
		}
	}
}

// reconcile makes Secret, webhook configuration and served certificate agree,
// and returns when the next of them is due.
func (c *Certificates) reconcile(ctx context.Context) (time.Time, error) {
	policy := c.Policy.withDefaults()
	material, err := c.stored(ctx, policy)
	if err != nil {
		return time.Time{}, err
	}
	if err := c.trust(ctx, material.bundle()); err != nil {
		return time.Time{}, err
	}
	c.serve(ctx, material)
	return policy.next(material), nil
}

// stored returns what the Secret holds, after having renewed what was due.
func (c *Certificates) stored(ctx context.Context, policy Policy) (keyMaterial, error) {
	secret, err := c.secrets().Get(ctx, c.Secret, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return keyMaterial{}, fmt.Errorf("getting secret %s/%s: %w", c.Namespace, c.Secret, err)
	}
	var have keyMaterial
	if !missing {
		if have, err = parseMaterial(secretData(secret)); err != nil {
			c.logger().WarnContext(ctx, "the secret holds no usable certificate", "secret", c.Secret, "err", err)
		}
	}
	restored := have.key == nil
	if restored {
		// What is served is still trusted: put it back rather than make all replicas change.
		have = c.current()
	}
	want, reason, err := policy.renew(have, c.now(), c.Names)
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
	if err := c.write(ctx, secret, missing, data); err != nil {
		return keyMaterial{}, err
	}
	c.logger().InfoContext(ctx, "certificate written", "secret", c.Secret, "reason", reason, "restored", restored, "expires", want.leaf.Leaf.NotAfter)
	return want, nil
}

// write stores data in the Secret unless another replica was faster: then the
// error makes the caller read again.
func (c *Certificates) write(ctx context.Context, secret *unstructured.Unstructured, missing bool, data map[string][]byte) error {
	encoded := map[string]any{}
	for k, v := range data {
		encoded[k] = base64.StdEncoding.EncodeToString(v)
	}
	var err error
	if missing {
		_, err = c.secrets().Create(ctx, &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1",
			"kind":       "Secret",
			"metadata":   map[string]any{"name": c.Secret, "namespace": c.Namespace, "labels": map[string]any{"azure-workload-identity.io/system": "true"}},
			"data":       encoded,
		}}, metav1.CreateOptions{})
	} else {
		secret = secret.DeepCopy()
		secret.Object["data"] = encoded
		_, err = c.secrets().Update(ctx, secret, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("writing secret %s/%s: %w", c.Namespace, c.Secret, err)
	}
	return nil
}

// trust makes the API server trust the bundle for this webhook.
func (c *Certificates) trust(ctx context.Context, bundle []byte) error {
	config, err := c.configurations().Get(ctx, c.Configuration, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("getting mutatingwebhookconfiguration %s: %w", c.Configuration, err)
	}
	webhooks, _, err := unstructured.NestedSlice(config.Object, "webhooks")
	if err != nil {
		return fmt.Errorf("reading mutatingwebhookconfiguration %s: %w", c.Configuration, err)
	}
	encoded := base64.StdEncoding.EncodeToString(bundle)
	for i, w := range webhooks {
		webhook, _ := w.(map[string]any)
		if webhook["name"] != c.Webhook {
			continue
		}
		have, _, _ := unstructured.NestedString(webhook, "clientConfig", "caBundle")
		if have == encoded {
			return nil
		}
		// The test keeps the patch from another webhook if the list has changed since.
		at := fmt.Sprintf("/webhooks/%d", i)
		patch, err := json.Marshal([]Operation{
			{Op: "test", Path: at + "/name", Value: c.Webhook},
			{Op: "add", Path: at + "/clientConfig/caBundle", Value: encoded},
		})
		if err != nil {
			return fmt.Errorf("encoding the patch: %w", err)
		}
		if _, err := c.configurations().Patch(ctx, c.Configuration, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("patching mutatingwebhookconfiguration %s: %w", c.Configuration, err)
		}
		c.logger().InfoContext(ctx, "caBundle written", "configuration", c.Configuration)
		return nil
	}
	return fmt.Errorf("mutatingwebhookconfiguration %s has no webhook %s: install it", c.Configuration, c.Webhook)
}

func (c *Certificates) serve(ctx context.Context, m keyMaterial) {
	c.mu.Lock()
	fresh := c.served.leaf.Leaf == nil || !bytes.Equal(c.served.leaf.Certificate[0], m.leaf.Certificate[0])
	c.served = m
	c.mu.Unlock()
	if fresh {
		c.Metrics.expires(m.leaf.Leaf.NotAfter)
		c.logger().InfoContext(ctx, "certificate served", "serial", m.leaf.Leaf.SerialNumber.Text(16), "expires", m.leaf.Leaf.NotAfter)
	}
}

func (c *Certificates) current() keyMaterial {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.served
}

// GetCertificate is for tls.Config.
func (c *Certificates) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	m := c.current()
	if m.leaf.Leaf == nil {
		return nil, errors.New("there is no serving certificate yet")
	}
	return &m.leaf, nil
}

// Ready reports whether there is a certificate that the API server trusts.
func (c *Certificates) Ready() error {
	if err := c.current().serves(c.now(), c.Names); err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	return nil
}

func (c *Certificates) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

func (c *Certificates) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.Default()
	}
	return c.Logger
}

func (c *Certificates) secrets() dynamic.ResourceInterface {
	return c.Client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(c.Namespace)
}

func (c *Certificates) configurations() dynamic.ResourceInterface {
	return c.Client.Resource(schema.GroupVersionResource{
		Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations",
	})
}

// named lists and watches one object, which needs rights on that name only.
func (*Certificates) named(resource dynamic.ResourceInterface, name string) cache.ListerWatcher {
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

// secretData decodes the members of a Secret; what is no base64 is left out.
func secretData(secret *unstructured.Unstructured) map[string][]byte {
	encoded, _, _ := unstructured.NestedStringMap(secret.Object, "data")
	data := map[string][]byte{}
	for k, v := range encoded {
		if raw, err := base64.StdEncoding.DecodeString(v); err == nil {
			data[k] = raw
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
