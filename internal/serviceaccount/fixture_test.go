package serviceaccount_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/graph"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/serviceaccount"
)

var cluster labtest.Cluster

const issuer = "https://issuer.example/"

// A desk is a cloud, a namespace of a real API server, and somebody who works
// with both.
type desk struct {
	*testing.T
	cloud     *cloudtest.Cloud
	who       azcore.TokenCredential
	cluster   client.Client
	namespace string
	faults    []*fault
	steps     []string // "phase action" of the last run
	result    serviceaccount.Result
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	c, err := serviceaccount.NewCluster(cluster.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{T: t, cloud: cloudtest.New(t), cluster: c, namespace: cluster.Namespace(t)}
	d.who = d.cloud.Owner()
	d.cloud.Do("PUT", d.group(), map[string]string{"location": "eastus"}, nil)
	return d
}

func (d *desk) group() string { return azure.Group(d.cloud.Subscription, "rg").String() }

func (d *desk) options() serviceaccount.Options {
	return serviceaccount.Options{
		Namespace: d.namespace, Name: "payroll", Issuer: issuer, Expiration: time.Hour,
		Scope: d.group(), Role: "Reader",
	}
}

func (d *desk) managed() serviceaccount.Options {
	o := d.options()
	o.IdentityID = d.group() + "/providers/" + azure.TypeManagedIdentity + "/payroll"
	return o
}

func (d *desk) azure() *serviceaccount.Azure {
	c, err := arm.CloudByName("")
	if err != nil {
		d.Fatal(err)
	}
	options := d.cloud.Options()
	options.Transport = d
	return &serviceaccount.Azure{Cloud: c, Credential: d.who, TenantID: d.cloud.Tenant.ID, SubscriptionID: d.cloud.Subscription, Options: options}
}

// A fault answers the next requests of a kind in the cloud's place.
type fault struct {
	method, path string // the end of the path's collection
	times        int
	status       int
	body         string
	then         func() // may be nil
}

// Do sends a request to the cloud, or to a fault.
func (d *desk) Do(req *http.Request) (*http.Response, error) {
	for _, f := range d.faults {
		if f.times > 0 && req.Method == f.method && strings.Contains(req.URL.Path, f.path) {
			f.times--
			if f.then != nil {
				f.then()
			}
			return &http.Response{
				StatusCode: f.status, Status: http.StatusText(f.status), Request: req, ProtoMajor: 1, ProtoMinor: 1,
				Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(f.body)),
			}, nil
		}
	}
	return d.cloud.Client.Do(req)
}

func (d *desk) graph() *graph.Client {
	a := d.azure()
	g, err := graph.New(a.Cloud, d.cloud.Owner(), a.Options)
	if err != nil {
		d.Fatal(err)
	}
	return g
}

// run runs phases: all, if none is named.
func (d *desk) run(v serviceaccount.Verb, o serviceaccount.Options, phases ...string) error {
	d.Helper()
	if len(phases) == 0 {
		var err error
		if phases, err = o.Plan(v, nil); err != nil {
			return err
		}
	}
	d.steps = nil
	r := serviceaccount.Runner{
		Options:  o,
		Connect:  func(context.Context) (*serviceaccount.Azure, error) { return d.azure(), nil },
		Cluster:  func() (client.Client, error) { return d.cluster, nil },
		Progress: func(s serviceaccount.Step) { d.steps = append(d.steps, s.Phase+" "+s.Action) },
		Wait:     time.Millisecond,
	}
	var err error
	d.result, err = r.Run(d.Context(), v, phases)
	return err
}

// must runs phases that succeed with the steps.
func (d *desk) must(v serviceaccount.Verb, o serviceaccount.Options, steps []string, phases ...string) {
	d.Helper()
	if err := d.run(v, o, phases...); err != nil {
		d.Fatal(err)
	}
	if !slices.Equal(d.steps, steps) {
		d.Errorf("steps are\n%q, want\n%q", d.steps, steps)
	}
}

// account returns the service account, or nil.
func (d *desk) account() *corev1.ServiceAccount {
	d.Helper()
	var a corev1.ServiceAccount
	err := d.cluster.Get(d.Context(), client.ObjectKey{Namespace: d.namespace, Name: "payroll"}, &a)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		d.Fatal(err)
	}
	return &a
}

// credentials are the federated ones of the run's identity.
func (d *desk) credentials() []federated.Credential {
	d.Helper()
	a := d.azure()
	c := federated.Client{Credential: d.cloud.Owner(), Cloud: a.Cloud, Options: a.Options}
	all, err := c.List(d.Context(), *d.result.Identity)
	if err != nil {
		d.Fatal(err)
	}
	return all
}

// assignments are the role assignments of a principal, as "role definition".
func (d *desk) assignments(principal string) []string {
	d.Helper()
	var list struct {
		Value []struct {
			Name       string
			Properties struct{ PrincipalID, PrincipalType string }
		}
	}
	d.cloud.Do("GET", azure.Subscription(d.cloud.Subscription).String()+"/providers/Microsoft.Authorization/roleAssignments", nil, &list)
	found := map[string]bool{}
	for _, x := range list.Value {
		if x.Properties.PrincipalID == principal {
			found[fmt.Sprint(x.Properties.PrincipalType, " ", x.Name)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}
