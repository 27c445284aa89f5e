package record

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
)

func object(kind, namespace, name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{"namespace": namespace, "name": name}}}
}

// Whoever may write a Secret in a namespace must not reach beyond it, or take a
// credential of others, with the rights of whoever rolls back.
func TestForgedRecordsAreRefused(t *testing.T) {
	good := func() *Record {
		return &Record{
			Version: version, Object: migrate.Ref{Kind: migrate.KindServiceAccount, Namespace: "a", Name: "app"}, Namespace: "a", After: object(migrate.KindServiceAccount, "a", "app"),
			Credentials: []migrate.NewCredential{{Credential: federated.Credential{Name: "c", Subject: "system:serviceaccount:a:app"}}},
		}
	}
	secret := func(r *Record) *corev1.Secret {
		s, err := r.secret()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if _, err := read(secret(good())); err != nil {
		t.Fatal(err)
	}
	for name, forge := range map[string]func(*Record){
		"another namespace": func(r *Record) {
			r.Object.Namespace = "b"
			r.After = object(migrate.KindServiceAccount, "b", "app")
			r.Credentials = nil
		},
		"another object inside":             func(r *Record) { r.After = object(migrate.KindServiceAccount, "a", "other") },
		"another kind inside":               func(r *Record) { r.After = object("Secret", "a", "app") },
		"the credential of another account": func(r *Record) { r.Credentials[0].Subject = "system:serviceaccount:b:app" },
		"no object":                         func(r *Record) { r.After = nil },
		"subjects of what has none":         func(r *Record) { r.Subject = "x" },
		"a cluster role without a subject": func(r *Record) {
			r.Object = migrate.Ref{Kind: migrate.KindClusterRoleBinding, Name: "x"}
			r.After = nil
		},
		"a role binding that it would fill": func(r *Record) {
			r.Object = migrate.Ref{Kind: migrate.KindRoleBinding, Namespace: "a", Name: "admins"}
			r.Before, r.After, r.Credentials = object(migrate.KindRoleBinding, "a", "admins"), object(migrate.KindRoleBinding, "a", "admins"), nil
		},
		"a role binding with more than a subject": func(r *Record) {
			r.Object = migrate.Ref{Kind: migrate.KindRoleBinding, Namespace: "a", Name: "admins"}
			r.Subject, r.After, r.Credentials = "app", object(migrate.KindRoleBinding, "a", "admins"), nil
		},
		"a pod": func(r *Record) {
			r.Object = migrate.Ref{Kind: "Pod", Namespace: "a", Name: "app"}
			r.Action, r.After, r.Credentials = migrate.ActionRecreate, object("Pod", "a", "app"), nil
		},
		"a deployment to be made again": func(r *Record) {
			r.Object = migrate.Ref{Kind: "Deployment", Namespace: "a", Name: "app"}
			r.Remaking, r.After, r.Credentials = true, object("Deployment", "a", "app"), nil
		},
		"a claim that it would change": func(r *Record) {
			r.Object = migrate.Ref{Kind: migrate.KindFederatedIdentity, Namespace: "a", Name: "app"}
			r.Before, r.After, r.Credentials = object(migrate.KindFederatedIdentity, "a", "app"), object(migrate.KindFederatedIdentity, "a", "app"), nil
		},
		"a version of tomorrow":                 func(r *Record) { r.Version = 2 },
		"a credential that a workload's claims": func(r *Record) { r.Object.Kind = "Deployment"; r.After = object("Deployment", "a", "app") },
	} {
		r := good()
		forge(r)
		if _, err := read(secret(r)); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	s := secret(good())
	s.Name = "lanyard-migration-serviceaccount-app-00000000"
	if _, err := read(s); err == nil {
		t.Error("a record under another name is read")
	}
	s = secret(good())
	s.Data[dataKey] = s.Data[dataKey][:20]
	if _, err := read(s); err == nil {
		t.Error("half a record is read")
	}
}

func TestWhatDoesNotFitIsRefusedBeforeItIsChanged(t *testing.T) {
	noise := make([]byte, 2<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	o := object("Deployment", "a", "big")
	o.SetAnnotations(map[string]string{"noise": base64.StdEncoding.EncodeToString(noise)})
	r := &Record{Version: version, Object: migrate.RefOf(o), Namespace: "a", Before: o, After: o}
	if _, err := r.secret(); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%v", err)
	}
	o.SetAnnotations(map[string]string{"noise": strings.Repeat("much of the same ", 1<<16)})
	s, err := r.secret()
	if err != nil || len(s.Data[dataKey]) > 64<<10 {
		t.Errorf("%v", err)
	}
}

func TestNamesOfRecordsAreValidAndApart(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range []*Record{
		{Object: migrate.Ref{Kind: "Deployment", Namespace: "a", Name: "x"}},
		{Object: migrate.Ref{Kind: "Deployment", Namespace: "a", Name: strings.Repeat("x", 253)}},
		{Object: migrate.Ref{Kind: "Deployment", Namespace: "a", Name: strings.Repeat("x", 252) + "y"}},
		{Object: migrate.Ref{Kind: migrate.KindClusterRoleBinding, Name: "system:x"}, Subject: "one"},
		{Object: migrate.Ref{Kind: migrate.KindClusterRoleBinding, Name: "system:x"}, Subject: "two"},
	} {
		name := r.name()
		if len(name) > 253 || strings.ContainsAny(name, ":_ ") || seen[name] {
			t.Errorf("%q", name)
		}
		seen[name] = true
	}
}
