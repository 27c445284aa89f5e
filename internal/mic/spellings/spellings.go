// Package spellings rewrites objects whose fields are in the spelling of releases
// of Pod Identity before 1.6, as they come. It does always what Pod Identity v1
// did once, when its configuration did not say that it was done: so a manifest
// in the old spelling that is applied today works too, and no ConfigMap has to
// keep a record.
package spellings

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/mic/assigned"
)

const eventSpellings = "SpellingConflict"

// A Controller rewrites on the raw object: nothing but the spelling changes.
type Controller struct {
	Client client.Client
	Live   client.Reader // reads past the cache
	Events events.EventRecorder
	Logger *slog.Logger // nil means slog.Default
}

// SetUp registers the controllers, one for each kind.
func (c *Controller) SetUp(m manager.Manager) error {
	for kind, obj := range map[string]client.Object{
		v1.KindAzureIdentity:             &v1.AzureIdentity{},
		v1.KindAzureIdentityBinding:      &v1.AzureIdentityBinding{},
		v1.KindAzurePodIdentityException: &v1.AzurePodIdentityException{},
	} {
		err := builder.ControllerManagedBy(m).
			Named("spellings-"+kind).
			For(obj, builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool {
				old, ok := o.(interface{ HasOldSpelling() bool })
				return ok && old.HasOldSpelling()
			}))).
			Complete(reconcile.Func(func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
				return reconcile.Result{}, c.rewrite(ctx, kind, req.NamespacedName)
			}))
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) rewrite(ctx context.Context, kind string, key types.NamespacedName) error {
	obj := &unstructured.Unstructured{}
	obj.SetGroupVersionKind(v1.GroupVersion().WithKind(kind))
	if err := c.Live.Get(ctx, key, obj); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("reading %s %s: %w", kind, key, err)
	}
	normal, changed, conflicts := v1.Normalize(kind, obj.Object)
	if !changed {
		return nil
	}
	patch, err := difference(obj.Object, normal, obj.GetResourceVersion())
	if err != nil {
		return fmt.Errorf("comparing %s %s: %w", kind, key, err)
	}
	if err := c.Client.Patch(ctx, obj, client.RawPatch(types.MergePatchType, patch)); err != nil {
		if assigned.IgnoreGone(err) == nil {
			return nil // a newer version is on its way here
		}
		return fmt.Errorf("rewriting %s %s: %w", kind, key, err)
	}
	c.logger().InfoContext(ctx, "old spellings rewritten", "kind", kind, "namespace", key.Namespace, "name", key.Name, "conflicts", len(conflicts))
	for _, conflict := range conflicts {
		c.Events.Eventf(obj, nil, corev1.EventTypeWarning, eventSpellings, "Normalize", "%s", conflict.String())
	}
	return nil
}

// difference is the JSON merge patch from one object to the other. It only
// applies to the version that was read.
func difference(from, to map[string]any, resourceVersion string) ([]byte, error) {
	before, err := json.Marshal(from)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(to)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.CreateMergePatch(before, after)
	if err != nil {
		return nil, err
	}
	return jsonpatch.MergePatch(patch, fmt.Appendf(nil, `{"metadata":{"resourceVersion":%q}}`, resourceVersion))
}

func (c *Controller) logger() *slog.Logger {
	if c.Logger != nil {
		return c.Logger
	}
	return slog.Default()
}
