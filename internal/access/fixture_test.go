package access_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/access"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

var cluster = &labtest.Cluster{CRDs: deploy.FS}

// An office is a namespace with a binding that is open on request, and with
// users: alice asks, bob approves, mallory may do everything but approve.
type office struct {
	*testing.T
	admin     client.WithWatch
	namespace string
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{T: t}
	o.admin = o.desk("").Client
	install(t, o.admin)
	o.namespace = cluster.Namespace(t)
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: "everything-but-approve"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"lanyard.id"}, Resources: []string{"accessrequests", "accessrequests/status"}, Verbs: []string{"get", "list", "watch", "create", "update", "patch", "delete"}},
	}}
	o.make(role,
		o.grant("alice", "ClusterRole", "lanyard-access-requester"),
		o.grant("bob", "ClusterRole", "lanyard-access-approver"),
		o.grant("mallory", "Role", role.Name),
		&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: "payroll"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: "l", Access: v1.AccessOnRequest}},
		&v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: "plain"}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: "l"}},
	)
	// The policy is in force when the API server has read it.
	forged := o.request("carol", nil)
	labtest.Eventually(t, t.Context(), func() error {
		err := o.desk("alice").Client.Create(t.Context(), forged.DeepCopy(), client.DryRunAll)
		if err == nil || !strings.Contains(err.Error(), "in the name of another") {
			return fmt.Errorf("the policy is not in force: %w", err)
		}
		return nil
	})
	return o
}

// install applies the manifest that operators install.
func install(t *testing.T, c client.Client) {
	t.Helper()
	docs, err := deploy.Manifests("access")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(docs[0]), "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), u); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
}

// desk is that of a user, who is in the group dev; no name means the
// administrator.
func (o *office) desk(user string) *access.Desk {
	o.Helper()
	config := cluster.Config(o.T)
	if user != "" {
		config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"dev", "system:authenticated"}}
	}
	d, err := access.NewDesk(config)
	if err != nil {
		o.Fatal(err)
	}
	if err := rbacv1.AddToScheme(d.Client.Scheme()); err != nil {
		o.Fatal(err)
	}
	return d
}

func (o *office) make(objects ...client.Object) {
	o.Helper()
	for _, x := range objects {
		if err := o.admin.Create(o.Context(), x); err != nil {
			o.Fatal(err)
		}
	}
}

func (o *office) grant(user, kind, role string) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, Name: user},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role},
	}
}

// request is one in the name of a user; nobody has checked that.
func (o *office) request(user string, groups []string) *lanyard.AccessRequest {
	return &lanyard.AccessRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.namespace, GenerateName: "r-"},
		Spec: lanyard.AccessRequestSpec{
			Binding: "payroll", Reason: "ticket 4711", Duration: metav1.Duration{Duration: time.Hour},
			Requester: lanyard.Requester{Username: user, Groups: groups},
		},
	}
}

// asked is a request that alice has made.
func (o *office) asked() *lanyard.AccessRequest {
	o.Helper()
	r, err := o.desk("alice").Ask(o.Context(), access.Ask{Namespace: o.namespace, Binding: "payroll", Reason: "ticket 4711", Duration: time.Hour})
	if err != nil {
		o.Fatal(err)
	}
	return r
}

// decide writes a decision as a user, without the manners of the command.
func (o *office) decide(user string, r *lanyard.AccessRequest, d *lanyard.Decision) error {
	o.Helper()
	var now lanyard.AccessRequest
	if err := o.admin.Get(o.Context(), client.ObjectKeyFromObject(r), &now); err != nil {
		o.Fatal(err)
	}
	now.Status.Decision = d
	return o.desk(user).Client.Status().Update(o.Context(), &now)
}

// patch approves as a user whose role has patch and not update.
func (o *office) patch(user string, r *lanyard.AccessRequest, by string) error {
	o.Helper()
	body := fmt.Sprintf(`{"status":{"decision":{"verdict":"Approved","by":%q,"at":"2026-01-01T00:00:00Z"}}}`, by)
	return o.desk(user).Client.Status().Patch(o.Context(), r.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(body)))
}

func (o *office) now(r *lanyard.AccessRequest) lanyard.AccessRequest {
	o.Helper()
	var now lanyard.AccessRequest
	if err := o.admin.Get(o.Context(), client.ObjectKeyFromObject(r), &now); err != nil {
		o.Fatal(err)
	}
	return now
}

// refused fails the test unless err contains text.
func (o *office) refused(err error, text string) {
	o.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		o.Errorf("got %v, want %q", err, text)
	}
}

func background(t *testing.T, f func(context.Context) error) (cancel func(error), done <-chan error) {
	ctx, stop := context.WithCancelCause(t.Context())
	c := make(chan error, 1)
	go func() { c <- f(ctx) }()
	t.Cleanup(func() { stop(errors.New("the test ended")) })
	return stop, c
}
