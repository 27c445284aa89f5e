package move

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move/survey"
)

// tokenLifetime is that of a service-account token for one exchange; the API
// server gives none for less.
const tokenLifetime = 600

// Claims say who a token speaks for.
type Claims struct {
	ClientID string `json:"clientID"`
	ObjectID string `json:"objectID"`
	TenantID string `json:"tenantID"`
}

// A bound pod is whose token is asked for; the zero value is the service account
// alone.
type bound struct {
	name string
	uid  types.UID
}

// errForGood is wrapped by what waiting does not help.
var errForGood = errors.New("that does not change by itself")

// exchange gets a token of the service account and exchanges it for one of the
// identity.
func (m *Mover) exchange(ctx context.Context, namespace, account, audience string, pod bound, id migrate.Identity) (Claims, error) {
	if id.TenantID == "" {
		return Claims{}, fmt.Errorf("%w: the tenant of %s is not known: give --tenant-id", errForGood, id.AzureIdentity)
	}
	seconds := int64(tokenLifetime)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds}}
	if pod.name != "" {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.name, UID: pod.uid}
	}
	got, err := m.Kube.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, request, metav1.CreateOptions{})
	if apierrors.IsForbidden(err) {
		err = fmt.Errorf("%w: %w", errForGood, err)
	}
	if err != nil {
		return Claims{}, fmt.Errorf("asking for a token of service account %s/%s (it needs the verb create on serviceaccounts/token): %w", namespace, account, err)
	}
	app := entra.Application{Authority: m.Authority, Tenant: id.TenantID, ClientID: id.ClientID}
	t, err := m.Entra.Token(ctx, app, entra.Assertion(got.Status.Token), m.resourceName())
	if err != nil {
		return Claims{}, err
	}
	return claimsOf(t.AccessToken)
}

// claimsOf reads a token that came from Entra over TLS a moment ago.
func claimsOf(token string) (Claims, error) {
	parts := strings.Split(token, ".")
	var c struct {
		AppID string `json:"appid"`
		AZP   string `json:"azp"`
		OID   string `json:"oid"`
		TID   string `json:"tid"`
	}
	if len(parts) != 3 {
		return Claims{}, errors.New("the token is no JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return Claims{}, errors.New("the token's claims cannot be read")
	}
	return Claims{ClientID: cmp.Or(c.AppID, c.AZP), ObjectID: c.OID, TenantID: c.TID}, nil
}

// differ says in what a token is not that of the identity; empty if it is.
func differ(c Claims, id migrate.Identity) string {
	var what []string
	for _, x := range []struct{ name, got, want string }{
		{"client id", c.ClientID, id.ClientID}, {"object id", c.ObjectID, id.PrincipalID}, {"tenant", c.TenantID, id.TenantID},
	} {
		if x.want != "" && !strings.EqualFold(x.got, x.want) {
			what = append(what, fmt.Sprintf("its %s is %s and not %s", x.name, x.got, x.want))
		}
	}
	return strings.Join(what, ", ")
}

// usable waits until Entra accepts tokens of the service account for each of its
// identities.
func (m *Mover) usable(ctx context.Context, p migrate.Plan, a migrate.Account) error {
	for _, id := range a.Identities {
		m.step("service account %s/%s: waiting until Entra gives it tokens of %s", a.Namespace, a.Name, id.AzureIdentity)
		limited, cancel := m.limit(ctx)
		told := ""
		err := again(limited, time.Second/4, func(ctx context.Context) (bool, error) {
			c, err := m.exchange(ctx, a.Namespace, a.Name, p.Audience, bound{}, id)
			var refusal *entra.Refusal
			switch {
			case err == nil:
				if d := differ(c, id); d != "" {
					return true, fmt.Errorf("the token is not that of %s: %s", id.AzureIdentity, d)
				}
				return true, nil
			case errors.As(err, &refusal):
				if told != refusal.Name {
					told = refusal.Name
					m.step("  not yet: %v", err)
				}
				return false, err
			case ctx.Err() != nil:
				return false, err
			default:
				return errors.Is(err, entra.ErrUnusable) || errors.Is(err, errForGood), err
			}
		})
		cancel()
		if err != nil {
			err = fmt.Errorf("the exchange for service account %s/%s does not work, and no workload was touched for it: %w", a.Namespace, a.Name, err)
			if p.Federation == migrate.FederationController {
				err = errors.Join(err, m.whyNotFederated(context.WithoutCancel(ctx), a))
			}
			return err
		}
	}
	return nil
}

// whyNotFederated tells what the federation controller says.
func (m *Mover) whyNotFederated(ctx context.Context, a migrate.Account) error {
	gvr, _ := migrate.ResourceOf(migrate.KindFederatedIdentity)
	list, err := survey.List(ctx, m.Objects, gvr, a.Namespace, migrate.KindFederatedIdentity)
	if err != nil {
		return err
	}
	var all []error
	for _, f := range list {
		name, _, _ := unstructured.NestedString(f.Object, "spec", "serviceAccountName")
		if name != a.Name {
			continue
		}
		conditions, _, _ := unstructured.NestedSlice(f.Object, "status", "conditions")
		if len(conditions) == 0 {
			all = append(all, fmt.Errorf("FederatedIdentity %s/%s has no conditions: is the federation controller running?", a.Namespace, f.GetName()))
		}
		for _, c := range conditions {
			if c, _ := c.(map[string]any); c["status"] != "True" {
				all = append(all, fmt.Errorf("FederatedIdentity %s/%s: %v is %v: %v", a.Namespace, f.GetName(), c["type"], c["status"], c["message"]))
			}
		}
	}
	return errors.Join(all...)
}

// unmutated says what a pod lacks that the webhook gives; empty if nothing.
func unmutated(pod *unstructured.Unstructured, audience string, proxy bool) string {
	volumes, _, _ := unstructured.NestedSlice(pod.Object, "spec", "volumes")
	if !slices.ContainsFunc(volumes, func(v any) bool { return projects(v, audience) }) {
		return "no volume with a token for " + audience
	}
	has := false
	sidecar := false
	for _, field := range []string{"containers", "initContainers"} {
		containers, _, _ := unstructured.NestedSlice(pod.Object, "spec", field)
		for _, c := range containers {
			c, _ := c.(map[string]any)
			env, _ := c["env"].([]any)
			if slices.ContainsFunc(env, func(v any) bool { m, _ := v.(map[string]any); return m["name"] == "AZURE_FEDERATED_TOKEN_FILE" }) {
				has = true
			}
			sidecar = sidecar || c["name"] == proxyContainer
		}
	}
	switch {
	case !has:
		return "no container with AZURE_FEDERATED_TOKEN_FILE"
	case proxy && !sidecar:
		return "no proxy sidecar"
	}
	return ""
}

// proxyContainer is the sidecar's name, as azure-workload-identity has it.
const proxyContainer = "azwi-proxy"

func projects(volume any, audience string) bool {
	v, _ := volume.(map[string]any)
	sources, _, _ := unstructured.NestedSlice(v, "projected", "sources")
	return slices.ContainsFunc(sources, func(s any) bool {
		s2, _ := s.(map[string]any)
		got, found, _ := unstructured.NestedString(s2, "serviceAccountToken", "audience")
		return found && got == audience
	})
}
