package mic

import (
	"context"
	"fmt"
	"log/slog"

	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
)

// access is what the cluster lets mic do beyond what Pod Identity v1 needed. A
// cluster in which only the images were changed has no AccessRequests: mic then
// does without, instead of waiting for them for ever.
type access struct {
	requests bool   // AccessRequests exist and may be read
	user     string // mic's own, as the API server authenticates it
}

func askAccess(ctx context.Context, m manager.Manager, logger *slog.Logger) (access, error) {
	kind := schema.GroupKind{Group: lanyard.GroupVersion().Group, Kind: "AccessRequest"}
	if _, err := m.GetRESTMapper().RESTMapping(kind, lanyard.GroupVersion().Version); err != nil {
		if !meta.IsNoMatchError(err) {
			return access{}, fmt.Errorf("asking whether the cluster has AccessRequests: %w", err)
		}
		logger.WarnContext(ctx, "the cluster has no AccessRequests: bindings with access OnRequest stay closed; apply the CustomResourceDefinition accessrequests.lanyard.id and restart mic")
		return access{}, nil
	}
	for _, verb := range []string{"list", "watch"} {
		review := &authorization.SelfSubjectAccessReview{Spec: authorization.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorization.ResourceAttributes{Group: kind.Group, Resource: "accessrequests", Verb: verb},
		}}
		if err := m.GetClient().Create(ctx, review); err != nil {
			return access{}, fmt.Errorf("asking whether mic may read AccessRequests: %w", err)
		}
		if !review.Status.Allowed {
			logger.WarnContext(ctx, "mic may not read AccessRequests: bindings with access OnRequest stay closed; apply the ClusterRole of this version and restart mic", "verb", verb)
			return access{}, nil
		}
	}
	review := &authentication.SelfSubjectReview{}
	if err := m.GetClient().Create(ctx, review); err != nil {
		return access{}, fmt.Errorf("asking who mic is: %w", err)
	}
	return access{requests: true, user: review.Status.UserInfo.Username}, nil
}
