package binding_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
)

const prefix = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"

// split reads "namespace/name".
func split(s string) (namespace, name string) {
	namespace, name, _ = strings.Cut(s, "/")
	return namespace, name
}

func identity(key string, edit ...func(*v1.AzureIdentity)) *v1.AzureIdentity {
	id := &v1.AzureIdentity{}
	id.Namespace, id.Name = split(key)
	id.Spec.ResourceID, id.Spec.ClientID = prefix+id.Name, "client-"+id.Name
	for _, e := range edit {
		e(id)
	}
	return id
}

func namespaced(id *v1.AzureIdentity) {
	id.Annotations = map[string]string{"aadpodidentity.k8s.io/Behavior": "namespaced"}
}

func bind(key, selector, id string) *v1.AzureIdentityBinding {
	b := &v1.AzureIdentityBinding{}
	b.Namespace, b.Name = split(key)
	b.Spec.Selector, b.Spec.AzureIdentity = selector, id
	return b
}

func assign(p binding.Pod, id *v1.AzureIdentity, status string, edit ...func(*v1.AzureAssignedIdentity)) *v1.AzureAssignedIdentity {
	a := &v1.AzureAssignedIdentity{}
	a.Spec.Pod, a.Spec.PodNamespace, a.Spec.NodeName = p.Name, p.Namespace, p.Node
	a.Spec.AzureIdentityRef = id.DeepCopy()
	a.Status.Status = status
	for _, e := range edit {
		e(a)
	}
	return a
}

func world(ids []*v1.AzureIdentity, bindings []*v1.AzureIdentityBinding, assigned ...*v1.AzureAssignedIdentity) binding.World {
	return binding.World{
		Bindings: bindings,
		Assigned: assigned,
		Identity: func(namespace, name string) *v1.AzureIdentity {
			for _, id := range ids {
				if id.Namespace == namespace && id.Name == name {
					return id
				}
			}
			return nil
		},
	}
}

type ids = []*v1.AzureIdentity
type bindings = []*v1.AzureIdentityBinding

func pod(key, label string) binding.Pod {
	p := binding.Pod{Node: "n1", Labels: map[string]string{"app": "x"}}
	p.Namespace, p.Name = split(key)
	if label != "" {
		p.Labels["aadpodidbinding"] = label
	}
	return p
}

func TestOf(t *testing.T) {
	force := func(w binding.World) binding.World { w.ForceNamespaced = true; return w }
	gone := metav1.Now()
	for _, c := range []struct {
		name     string
		pod      binding.Pod
		world    binding.World
		bound    []string // binding -> identity
		problems []string // binding: reason
	}{
		{"a pod without the label has nothing", pod("a/p", ""), world(ids{identity("a/i")}, bindings{bind("a/b", "", "i")}), nil, nil},
		{"a label that equals a selector gives the identity", pod("a/p", "l"), world(ids{identity("a/i")}, bindings{bind("a/b", "l", "i")}), []string{"a/b -> a/i"}, nil},
		{"a selector is compared exactly", pod("a/p", "L"), world(ids{identity("a/i")}, bindings{bind("a/b", "l", "i")}), nil, nil},
		{"a binding reaches pods of other namespaces", pod("a/p", "l"), world(ids{identity("z/i")}, bindings{bind("z/b", "l", "i")}), []string{"z/b -> z/i"}, nil},
		{"the identity is looked up in the binding's namespace", pod("a/p", "l"), world(ids{identity("a/i")}, bindings{bind("z/b", "l", "i")}), nil, []string{"z/b: IdentityMissing"}},
		{"a namespaced identity stays in its namespace", pod("a/p", "l"), world(ids{identity("z/i", namespaced)}, bindings{bind("z/b", "l", "i")}), nil, []string{"z/b: OtherNamespace"}},
		{"a namespaced identity serves its namespace", pod("a/p", "l"), world(ids{identity("a/i", namespaced)}, bindings{bind("a/b", "l", "i")}), []string{"a/b -> a/i"}, nil},
		{"when namespaces are forced every binding stays in its own", pod("a/p", "l"), force(world(ids{identity("z/i")}, bindings{bind("z/b", "l", "i")})), nil, []string{"z/b: OtherNamespace"}},
		{"two bindings of one identity count once", pod("a/p", "l"), world(ids{identity("a/i")}, bindings{bind("a/c", "l", "i"), bind("a/b", "l", "i")}), []string{"a/b -> a/i"}, nil},
		{"identities come in order", pod("a/p", "l"), world(ids{identity("a/i"), identity("a/h"), identity("Z/h")}, bindings{bind("a/b", "l", "i"), bind("a/c", "l", "h"), bind("Z/x", "l", "h")}), []string{"Z/x -> Z/h", "a/c -> a/h", "a/b -> a/i"}, nil},
		{"a binding that is being deleted counts no more", pod("a/p", "l"), world(ids{identity("a/i")}, bindings{func() *v1.AzureIdentityBinding {
			b := bind("a/b", "l", "i")
			b.DeletionTimestamp = &gone
			return b
		}()}), nil, nil},
		{"an identity that is being deleted counts no more", pod("a/p", "l"), world(ids{identity("a/i", func(id *v1.AzureIdentity) { id.DeletionTimestamp = &gone })}, bindings{bind("a/b", "l", "i")}), nil, []string{"a/b: IdentityMissing"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bound, problems := binding.Of(c.pod, c.world)
			var gotBound, gotProblems []string
			for _, b := range bound {
				gotBound = append(gotBound, b.Binding.Namespace+"/"+b.Binding.Name+" -> "+b.Identity.Namespace+"/"+b.Identity.Name)
			}
			for _, p := range problems {
				gotProblems = append(gotProblems, p.Binding.Namespace+"/"+p.Binding.Name+": "+string(p.Reason))
			}
			if diff := cmp.Diff(c.bound, gotBound); diff != "" {
				t.Errorf("bound (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(c.problems, gotProblems); diff != "" {
				t.Errorf("problems (-want +got)\n%s", diff)
			}
		})
	}
}

func TestSelect(t *testing.T) {
	p := pod("a/p", "l")
	i, j := identity("a/i"), identity("a/j")
	one, two := bindings{bind("a/b", "l", "i")}, bindings{bind("a/b", "l", "i"), bind("a/c", "l", "j")}
	broken := identity("a/a", func(id *v1.AzureIdentity) { id.Spec.ResourceID = "nonsense" })
	principal := func(id *v1.AzureIdentity) {
		id.Spec = v1.AzureIdentitySpec{Type: v1.ServicePrincipal, TenantID: "t", ClientID: "client-" + id.Name, ClientPassword: v1.SecretReference{Name: "s"}}
	}
	sp := identity("a/sp", principal)
	without := func(edit func(s *v1.AzureIdentitySpec)) binding.World {
		id := identity("a/sp", principal)
		edit(&id.Spec)
		return world(ids{id}, bindings{bind("a/b", "l", "sp")})
	}
	managed := func(w binding.World) binding.World { w.Managed = true; return w }
	moved := identity("a/i", func(id *v1.AzureIdentity) { id.Spec.ResourceID = prefix + "other" })
	note := func(a *v1.AzureAssignedIdentity) {
		a.Status.Conditions = []metav1.Condition{{Type: v1.ConditionAssigned, Status: metav1.ConditionFalse, Message: "mic may not use the identity"}}
	}
	gone := metav1.Now()
	for _, c := range []struct {
		name   string
		pod    binding.Pod
		world  binding.World
		sel    binding.Selector
		want   string // the identity
		reason binding.Reason
		text   string // part of the refusal
	}{
		{"the assigned identity", p, world(ids{i}, one, assign(p, i, v1.AssignedIDAssigned)), binding.Selector{}, "a/i", "", ""},
		{"an assignment of an old controller has no status", p, world(ids{i}, one, assign(p, i, "")), binding.Selector{}, "a/i", "", ""},
		{"by client id in any case", p, world(ids{i, j}, two, assign(p, j, v1.AssignedIDAssigned)), binding.Selector{ClientID: "CLIENT-J"}, "a/j", "", ""},
		{"by resource id in any case", p, world(ids{i, j}, two, assign(p, j, v1.AssignedIDAssigned)), binding.Selector{ResourceID: strings.ToUpper(prefix[:14]) + prefix[14:] + "J"}, "a/j", "", ""},
		{"the first of several if none is named", p, world(ids{j, i}, two, assign(p, j, v1.AssignedIDAssigned), assign(p, i, v1.AssignedIDAssigned)), binding.Selector{}, "a/i", "", ""},
		{"the choice does not depend on which one is assigned first", p, world(ids{i, j}, two, assign(p, j, v1.AssignedIDAssigned)), binding.Selector{}, "", binding.NotAssigned, "AzureIdentity a/i is not assigned"},
		{"a badly written identity does not stand in the way", p, world(ids{broken, i}, bindings{bind("a/a", "l", "a"), bind("a/b", "l", "i")}, assign(p, i, v1.AssignedIDAssigned)), binding.Selector{}, "a/i", "", ""},

		{"no label", pod("a/p", ""), world(ids{i}, one), binding.Selector{}, "", binding.NoLabel, "pod a/p does not have the label aadpodidbinding"},
		{"no binding", pod("a/p", "x"), world(ids{i}, one), binding.Selector{}, "", binding.NoBinding, `no AzureIdentityBinding has the selector "x"`},
		{"an assignment without a binding entitles to nothing", pod("a/p", "x"), world(ids{i}, one, assign(p, i, v1.AssignedIDAssigned)), binding.Selector{}, "", binding.NoBinding, ""},
		{"no identity behind the binding", p, world(nil, one), binding.Selector{}, "", binding.IdentityMissing, `AzureIdentityBinding a/b names the AzureIdentity "i", which does not exist in namespace a`},
		{"another namespace", pod("z/p", "l"), world(ids{identity("a/i", namespaced)}, one), binding.Selector{}, "", binding.OtherNamespace, "only for pods of namespace a, and the pod is in namespace z"},
		{"another client id", p, world(ids{i}, one, assign(p, i, v1.AssignedIDAssigned)), binding.Selector{ClientID: "client-x"}, "", binding.NotAllowed, `client id "client-x"; its bindings lead to AzureIdentity a/i`},
		{"another resource id", p, world(ids{i}, one, assign(p, i, v1.AssignedIDAssigned)), binding.Selector{ResourceID: prefix + "x"}, "", binding.NotAllowed, "resource id"},
		{"a resource id that is none", p, world(ids{broken}, bindings{bind("a/a", "l", "a")}), binding.Selector{ResourceID: "nonsense"}, "", binding.NotAllowed, "resource id"},
		{"an object id", p, world(ids{i}, one, assign(p, i, v1.AssignedIDAssigned)), binding.Selector{ObjectID: "o"}, "", binding.UnsupportedSelector, "client_id or msi_res_id"},
		{"a service principal by client id", p, world(ids{sp}, bindings{bind("a/b", "l", "sp")}, assign(p, sp, v1.AssignedIDAssigned)), binding.Selector{ClientID: "client-sp"}, "a/sp", "", ""},
		{"a service principal that is not assigned", p, world(ids{sp}, bindings{bind("a/b", "l", "sp")}), binding.Selector{}, "", binding.NotAssigned, "not assigned"},
		{"a service principal without a tenant", p, without(func(s *v1.AzureIdentitySpec) { s.TenantID = "" }), binding.Selector{}, "", binding.InvalidIdentity, "spec.tenantID is empty"},
		{"a service principal without a client id", p, without(func(s *v1.AzureIdentitySpec) { s.ClientID = "" }), binding.Selector{}, "", binding.InvalidIdentity, "spec.clientID is empty"},
		{"a service principal without a Secret", p, without(func(s *v1.AzureIdentitySpec) { s.ClientPassword = v1.SecretReference{} }), binding.Selector{}, "", binding.InvalidIdentity, "spec.clientPassword.name is empty"},
		{"a service principal with too many tenants", p, without(func(s *v1.AzureIdentitySpec) { s.AuxiliaryTenantIDs = []string{"1", "2", "3", "4"} }), binding.Selector{}, "", binding.InvalidIdentity, "at most 3"},
		{"a type that does not exist", p, without(func(s *v1.AzureIdentitySpec) { s.Type = 3 }), binding.Selector{}, "", binding.UnsupportedType, "spec.type 3 does not exist"},
		{"an assignment of another type", p, world(ids{sp}, bindings{bind("a/b", "l", "sp")}, assign(p, identity("a/sp"), v1.AssignedIDAssigned)), binding.Selector{}, "", binding.NotAssigned, "was changed"},
		{"in managed mode no assignment is needed", p, managed(world(ids{i}, one)), binding.Selector{}, "a/i", "", ""},
		{"in managed mode a binding is needed", pod("a/p", "x"), managed(world(ids{i}, one)), binding.Selector{}, "", binding.NoBinding, ""},
		{"a resource id that is broken", p, world(ids{broken}, bindings{bind("a/a", "l", "a")}), binding.Selector{}, "", binding.InvalidIdentity, "/subscriptions/{id}/resourceGroups/"},
		{"no assignment yet", p, world(ids{i}, one), binding.Selector{}, "", binding.NotAssigned, "not assigned to the machine of pod a/p yet"},
		{"an assignment that is under way", p, world(ids{i}, one, assign(p, i, v1.AssignedIDCreated, note)), binding.Selector{}, "", binding.NotAssigned, "yet: mic may not use the identity"},
		{"an assignment of another node", p, world(ids{i}, one, assign(p, i, v1.AssignedIDAssigned, func(a *v1.AzureAssignedIdentity) { a.Spec.NodeName = "n2" })), binding.Selector{}, "", binding.NotAssigned, ""},
		{"an assignment on its way out", p, world(ids{i}, one, assign(p, i, v1.AssignedIDAssigned, func(a *v1.AzureAssignedIdentity) { a.DeletionTimestamp = &gone })), binding.Selector{}, "", binding.NotAssigned, ""},
		{"an assignment of another pod", p, world(ids{i}, one, assign(pod("b/p", "l"), i, v1.AssignedIDAssigned)), binding.Selector{}, "", binding.NotAssigned, ""},
		{"an assignment of what the identity used to be", p, world(ids{moved}, one, assign(p, i, v1.AssignedIDAssigned)), binding.Selector{}, "", binding.NotAssigned, "was changed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := binding.Select(c.pod, c.world, c.sel, time.Time{})
			if c.want != "" {
				if err != nil {
					t.Fatal(err)
				}
				if key := got.Identity.Namespace + "/" + got.Identity.Name; key != c.want || got.Binding == nil {
					t.Errorf("got %s, want %s", key, c.want)
				}
				return
			}
			var r *binding.Refusal
			if !errors.As(err, &r) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if r.Reason != c.reason || !strings.Contains(r.Text, c.text) {
				t.Errorf("got %s: %s", r.Reason, r.Text)
			}
			if r.Wait() != (r.Reason == binding.NotAssigned) {
				t.Errorf("%s: Wait = %v", r.Reason, r.Wait())
			}
		})
	}
}

func TestCandidatesAreAllThatARequestCouldGet(t *testing.T) {
	p := pod("a/p", "l")
	i, j, k := identity("a/i"), identity("a/j"), identity("a/k")
	broken := identity("a/broken", func(id *v1.AzureIdentity) { id.Spec.ResourceID = "nonsense" })
	closed := bind("a/closed", "l", "k")
	closed.Spec.NotAfter = &metav1.Time{Time: time.Unix(1, 0)}
	all := bindings{bind("a/1", "l", "j"), bind("a/2", "l", "i"), bind("a/3", "l", "i"), bind("a/4", "l", "broken"), closed}
	w := world(ids{i, j, k, broken}, all, assign(p, i, v1.AssignedIDAssigned), assign(p, j, v1.AssignedIDCreated), assign(p, k, v1.AssignedIDAssigned))
	names := func(w binding.World) (got []string) {
		bound, refusal := binding.Candidates(p, w, time.Unix(2, 0))
		if refusal != nil {
			return []string{string(refusal.Reason)}
		}
		for _, b := range bound {
			got = append(got, b.Identity.Name)
		}
		return got
	}
	if diff := cmp.Diff([]string{"i"}, names(w)); diff != "" {
		t.Error(diff)
	}
	w.Managed = true
	if diff := cmp.Diff([]string{"i", "j"}, names(w)); diff != "" {
		t.Errorf("in managed mode: %s", diff)
	}
	w.Managed, w.Assigned = false, nil
	if diff := cmp.Diff([]string{"NotAssigned"}, names(w)); diff != "" {
		t.Error(diff)
	}
}

func TestExcepted(t *testing.T) {
	e := &v1.AzurePodIdentityException{}
	e.Namespace = "a"
	e.Spec.PodLabels = map[string]string{"app": "MIC", "other": "x"}
	for _, c := range []struct {
		name string
		pod  binding.Pod
		want bool
	}{
		{"one of the labels is enough, in any case", binding.Pod{Namespace: "a", Labels: map[string]string{"app": "mic"}}, true},
		{"another value", binding.Pod{Namespace: "a", Labels: map[string]string{"app": "web"}}, false},
		{"another namespace", binding.Pod{Namespace: "b", Labels: map[string]string{"app": "mic"}}, false},
		{"no label", binding.Pod{Namespace: "a"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := binding.Excepted(c.pod, []*v1.AzurePodIdentityException{e}); got != c.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

func TestAnEmptyExceptionExceptsNothing(t *testing.T) {
	if binding.Excepted(binding.Pod{Labels: map[string]string{"": ""}}, []*v1.AzurePodIdentityException{{}}) {
		t.Error("excepted")
	}
}

func TestAssignedNames(t *testing.T) {
	a, b := pod("z/x-y", "l"), pod("y-z/x", "l")
	i := identity("default/i")
	if got := binding.AssignedName(pod("default/test-id-pod", "l"), identity("default/vpl-id")); got != "test-id-pod-default-vpl-id" {
		t.Errorf("got %s", got)
	}
	if binding.AssignedName(a, i) != binding.AssignedName(b, i) {
		t.Error("the test's premise is wrong: the names differ")
	}
	if binding.AssignedNameUnique(a, i) == binding.AssignedNameUnique(b, i) {
		t.Error("two pods share a unique name")
	}
	long := pod("default/"+strings.Repeat("p", 253), "l")
	for _, name := range []string{binding.AssignedName(long, i), binding.AssignedNameUnique(long, i)} {
		if len(name) > 253 {
			t.Errorf("%d characters", len(name))
		}
	}
	if got := binding.AssignedNamespace(i, false); got != "default" {
		t.Errorf("got %s", got)
	}
	if got := binding.AssignedNamespace(identity("a/i", namespaced), false); got != "a" {
		t.Errorf("got %s", got)
	}
	if got := binding.AssignedNamespace(identity("a/i"), true); got != "a" {
		t.Errorf("got %s", got)
	}
}

// FuzzSelect builds small worlds from bytes. Whatever they are: no panic, and
// an identity is granted only if a binding with the pod's label leads to it and
// the machine has it.
func FuzzSelect(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8}, "client-i", "")
	f.Add([]byte("\x00\x00\x00\x00"), "", prefix+"i")
	f.Fuzz(func(t *testing.T, data []byte, client, resource string) {
		next := func(n int) int {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return int(b) % n
		}
		names, labels := []string{"a", "b"}, []string{"l", "m", ""}
		p := pod(names[next(2)]+"/p", labels[next(3)])
		var all ids
		for _, ns := range names {
			for _, n := range []string{"i", "j"} {
				id := identity(ns + "/" + n)
				if next(3) == 0 {
					namespaced(id)
				}
				id.Spec.Type = v1.IdentityType(next(4))
				all = append(all, id)
			}
		}
		w := world(all[:next(5)], nil)
		w.ForceNamespaced = next(2) == 0
		accounts := []string{"", "sa", "sb"}
		p.ServiceAccount = accounts[next(3)]
		for range next(4) {
			b := bind(names[next(2)]+"/x", labels[next(3)], []string{"i", "j"}[next(2)])
			b.Spec.ServiceAccountName = accounts[next(3)]
			if next(3) == 0 {
				b.Spec.ServiceAccountNames = []string{accounts[next(3)]}
			}
			if next(3) == 0 {
				b.Spec.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": []string{"x", "y"}[next(2)]}}
			}
			w.Bindings = append(w.Bindings, b)
		}
		for range next(4) {
			w.Assigned = append(w.Assigned, assign(p, all[next(4)], []string{"", v1.AssignedIDAssigned, v1.AssignedIDCreated}[next(3)]))
		}
		sel := binding.Selector{ClientID: client}
		if client == "" {
			sel = binding.Selector{ResourceID: resource}
		}
		got, err := binding.Select(p, w, sel, time.Time{})
		if err != nil {
			var r *binding.Refusal
			if !errors.As(err, &r) || r.Reason == "" || r.Text == "" {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		s := got.Binding.Spec
		limited := s.ServiceAccountName != "" || len(s.ServiceAccountNames) > 0
		switch {
		case s.Selector != p.Labels["aadpodidbinding"] && s.Selector != "", s.Selector == "" && s.PodSelector == nil && !limited:
			t.Fatalf("granted by a binding with the selector %q", s.Selector)
		case s.PodSelector != nil && s.PodSelector.MatchLabels["app"] != "x":
			t.Fatal("granted by a binding for other labels")
		case limited && (p.ServiceAccount == "" || p.ServiceAccount != s.ServiceAccountName && !slices.Contains(s.ServiceAccountNames, p.ServiceAccount)):
			t.Fatalf("granted to service account %q by a binding for %q and %q", p.ServiceAccount, s.ServiceAccountName, s.ServiceAccountNames)
		case (limited || s.PodSelector != nil) && got.Binding.Namespace != p.Namespace:
			t.Fatal("a name of another namespace was taken for one of its own")
		case !binding.Matches(got.Binding, p):
			t.Fatal("granted by a binding that does not match")
		}
		if got.Binding.Namespace != got.Identity.Namespace || got.Binding.Spec.AzureIdentity != got.Identity.Name {
			t.Fatal("granted an identity that the binding does not name")
		}
		if binding.Namespaced(got.Identity, w.ForceNamespaced) && got.Identity.Namespace != p.Namespace {
			t.Fatal("granted a namespaced identity to another namespace")
		}
		if client != "" && !strings.EqualFold(client, got.Identity.Spec.ClientID) {
			t.Fatalf("asked for %q, granted %q", client, got.Identity.Spec.ClientID)
		}
		for _, a := range w.Assigned {
			if w.Managed || binding.Concerns(a, p, got.Identity) && a.Status.Status != v1.AssignedIDCreated {
				return
			}
		}
		t.Fatal("granted an identity that the machine does not have")
	})
}
