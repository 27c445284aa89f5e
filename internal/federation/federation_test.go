package federation_test

import (
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
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
