package federation_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/federation"
	"github.com/lanyard-id/lanyard/internal/federation/plan"
)

func TestAnAnnotatedServiceAccountIsAnIdentity(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	w.run()
	sa := w.account("web", p.ClientID)
	f := w.await("web", "Ready=True Ready")
	w.awaitCredentials(p, "web")
	if f.Status.UsableSince == nil || f.Status.ClientID != p.ClientID || f.Status.Issuer != issuer || f.Status.ParentID != p.ResourceID {
		t.Errorf("status %+v", f.Status)
	}
	w.awaitEvent("ServiceAccount", "web", "Created", "is at the managed identity")
	w.awaitEvent("ServiceAccount", "web", "Usable", p.ClientID)
	if err := w.Delete(t.Context(), sa); err != nil {
		t.Fatal(err)
	}
	w.awaitGone("web")
	w.awaitCredentials(p)
	w.noTokens()
}

func TestApplicationsManyToOneAndOneToMany(t *testing.T) {
	w := newWorld(t)
	app, id := w.application("api"), w.identity("api")
	w.allow(byClient(app), lanyard.PolicyIdentity{ResourceID: id.ResourceID})
	w.run()
	w.account("one", app.ClientID)
	both := w.account("two", app.ClientID, id.ClientID)
	w.await("one", "Ready=True Ready")
	w.await("two", "Ready=True Ready")
	w.await("two-"+id.ClientID[:8], "Ready=True Ready")
	w.awaitCredentials(app, "one", "two")
	w.awaitCredentials(id, "two")

	next := both.DeepCopy()
	delete(next.Annotations, lanyard.AnnotationClientIDs)
	if err := w.Patch(t.Context(), next, client.MergeFrom(both)); err != nil {
		t.Fatal(err)
	}
	w.awaitGone("two-" + id.ClientID[:8])
	w.awaitCredentials(id)
	w.awaitCredentials(app, "one", "two")
}

func TestAForeignCredentialIsUsedAndLeftAlone(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	w.put(p, federated.Credential{Name: "by-hand", Issuer: issuer, Subject: federated.Subject(w.ns, "web"), Audience: federated.Audience})
	w.put(p, federated.Credential{Name: "lanyard-other-cluster", Issuer: "https://other.example/", Subject: federated.Subject(w.ns, "web"), Audience: federated.Audience})
	w.put(p, federated.Credential{Name: "bad-audience", Issuer: issuer, Subject: federated.Subject(w.ns, "taken"), Audience: "api://another"})
	w.run()
	w.account("web", p.ClientID)
	w.account("taken", p.ClientID)
	f := w.await("web", "Created=True Foreign")
	if f.Status.CredentialName != "by-hand" {
		t.Errorf("credential %q", f.Status.CredentialName)
	}
	w.await("web", "Ready=True Ready")
	w.await("taken", "Created=False Taken")
	w.awaitEvent("ServiceAccount", "taken", "Taken", "bad-audience")
	if err := w.Delete(t.Context(), f); err != nil { // the account's annotation makes it again
		t.Fatal(err)
	}
	w.eventually(func() error {
		again, err := w.get("web")
		if err == nil && again.UID == f.UID {
			err = errors.New("the object is still the old one")
		}
		return err
	})
	w.await("web", "Created=True Foreign")
	for _, name := range []string{"web", "taken"} {
		w.remove(name)
	}
	w.awaitCredentials(p, "taken", "web", "web https://other.example/")
}

func TestWhatAPersonDeletesOrChangesIsRestored(t *testing.T) {
	w := newWorld(t)
	p, app := w.identity("web"), w.application("web")
	w.allow(byClient(p), byClient(app))
	w.run(func(c *federation.Config) { c.Interval = 100 * time.Millisecond })
	w.account("web", p.ClientID, app.ClientID)
	further := "web-" + app.ClientID[:8]
	before := w.await("web", "Ready=True Ready")
	w.await(further, "Ready=True Ready")
	for _, parent := range []federated.Parent{p, app} {
		w.deleteByHand(parent)
		w.awaitCredentials(parent, "web")
	}
	w.awaitEvent("ServiceAccount", "web", "Restored", "made again")
	w.put(p, federated.Credential{Name: before.Status.CredentialName, Issuer: "https://attacker.example/", Subject: before.Status.Subject, Audience: federated.Audience})
	w.awaitCredentials(p, "web")
	w.awaitEvent("ServiceAccount", "web", "Corrected", "was put right")
	w.await("web", "Ready=True Ready")
}

func TestAChangedIssuerIsPutRightInPlace(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	stop := w.run(func(c *federation.Config) { c.Issuer = "https://old.example/" })
	w.account("web", p.ClientID)
	w.await("web", "Created=True Created")
	w.awaitCredentials(p, "web https://old.example/")
	stop()
	w.run(func(c *federation.Config) { c.Issuer = "" }) // the API server says it
	w.awaitCredentials(p, "web")
	f := w.await("web", "Ready=True Ready")
	if f.Status.Issuer != issuer {
		t.Errorf("issuer %q", f.Status.Issuer)
	}
	w.awaitEvent("FederatedIdentity", "web", "Corrected", "issuer of the cluster changed")
}

func TestTwoClustersAndTwoNamespacesShareAnIdentity(t *testing.T) {
	w := newWorld(t)
	p := w.identity("web")
	w.allow(byClient(p))
	w.put(p, federated.Credential{Name: plan.Name("another-cluster", w.ns, "web"), Issuer: "https://other.example/", Subject: federated.Subject(w.ns, "web"), Audience: federated.Audience})
	w.run()
	other := cluster.Namespace(t)
	w.make(&lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{Name: other}, Spec: lanyard.FederationPolicySpec{Namespaces: []string{other}, Identities: []lanyard.PolicyIdentity{byClient(p)}}})
	w.account("web", p.ClientID)
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: other, Name: "web", Annotations: map[string]string{workloadidentity.AnnotationClientID: p.ClientID}}}
	w.make(sa)
	w.await("web", "Ready=True Ready")
	theirs := federated.Subject(other, "web") + " " + issuer
	w.awaitCredentials(p, theirs, "web", "web https://other.example/")
	w.remove("web")
	w.awaitCredentials(p, theirs, "web https://other.example/")
	if err := w.Delete(t.Context(), sa); err != nil {
		t.Fatal(err)
	}
	w.awaitCredentials(p, "web https://other.example/")
}

func TestAtTheLimitItSaysSoAndGoesOn(t *testing.T) {
	w := newWorld(t)
	p := w.identity("full")
	w.allow(byClient(p))
	fill(w, p, 19)
	w.run(func(c *federation.Config) { c.Interval = 200 * time.Millisecond })
	w.account("first", p.ClientID)
	w.await("first", "Ready=True Ready")
	w.account("second", p.ClientID)
	w.await("second", "Created=False LimitReached")
	w.await("second", "Ready=False LimitReached")
	w.awaitEvent("ServiceAccount", "second", "LimitReached", "second identity")
	w.remove("first") // the account too: see remove
	w.await("second", "Ready=True Ready")
	w.account("third", p.ClientID)
	w.await("third", "Created=False LimitReached")
	w.update(func(tx *state.Tx) error {
		_, err := directory.DeleteFederatedCredential(tx, p.PrincipalID, "foreign-00")
		return err
	})
	w.await("third", "Ready=True Ready")
}

func TestManyServiceAccountsCostOneListing(t *testing.T) {
	w := newWorld(t)
	p := w.identity("many")
	w.allow(byClient(p))
	var names []string
	for i := range 12 {
		names = append(names, fmt.Sprintf("a-%02d", i))
		w.account(names[i], p.ClientID)
	}
	w.run()
	w.awaitCredentials(p, slices.Clone(names)...)
	for _, n := range names {
		w.await(n, "Ready=True Ready")
	}
	if n := w.azure.count("list many"); n != 1 {
		t.Errorf("%d listings", n)
	}
	if n := w.azure.count("put many"); n != len(names) {
		t.Errorf("%d writes for %d credentials", n, len(names))
	}
}

func TestOneThrottledIdentityDelaysNoOther(t *testing.T) {
	w := newWorld(t)
	slow, quick := w.identity("slow"), w.identity("quick")
	w.allow(byClient(slow), byClient(quick))
	w.azure.set(func(operation string, p federated.Parent, _ string) error {
		if operation == "put" && p.DisplayName == "slow" {
			return &federated.Throttled{RetryAfter: 2 * time.Second, Err: errors.New("429 TooManyRequests")}
		}
		return nil
	})
	w.run()
	for i := range 3 {
		w.account(fmt.Sprint("slow-", i), slow.ClientID)
	}
	w.await("slow-0", "Created=False Throttled")
	w.account("quick", quick.ClientID)
	w.await("quick", "Ready=True Ready")
	for i := range 3 {
		w.await(fmt.Sprint("slow-", i), "Ready=False Throttled")
	}
	if n := w.azure.count("put slow"); n > 2 {
		t.Errorf("%d writes while Azure asks to wait", n)
	}
	w.azure.set(nil)
	for i := range 3 {
		w.await(fmt.Sprint("slow-", i), "Ready=True Ready")
	}
	w.awaitCredentials(slow, "slow-0", "slow-1", "slow-2")
}
