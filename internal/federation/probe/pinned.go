package probe

import (
	"context"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// unwanted is an audience that nobody accepts, and that no controller asks for.
const unwanted = "lanyard.id/federation-must-not-get-this"

// pinInterval is between two looks at whether the admission policy is in force.
const pinInterval = time.Hour

// checkPinned looks whether the API server would give the controller tokens that
// are good for more than Entra, and says so: then whoever gets hold of the
// controller's own token is every service account of the cluster. The probe goes
// on: to leave the right unused would take it from nobody.
func (c *Controller) checkPinned(ctx context.Context, account *corev1.ServiceAccount) {
	c.mu.Lock()
	due := !c.now().Before(c.pinned)
	if due {
		c.pinned = c.now().Add(pinInterval)
	}
	c.mu.Unlock()
	if !due {
		return
	}
	seconds := int64(lifetime / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{unwanted}, ExpirationSeconds: &seconds}}
	err := c.Client.SubResource("token").Create(ctx, account.DeepCopy(), request)
	switch {
	case err == nil:
		c.logger().WarnContext(ctx, "the controller may ask for tokens of every service account for any audience, the API server's too: install the ValidatingAdmissionPolicy federation.lanyard.id of deploy/manifests/federation.yaml (its user name must be the controller's), or run with --probe=false and without the role lanyard-federation-probe")
	case apierrors.IsForbidden(err):
	default: // not known: the next attempt looks
		c.mu.Lock()
		c.pinned = time.Time{}
		c.mu.Unlock()
	}
}
