package migrate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/binding"
)

// accountName is that of the service account that a workload is to have: its own
// if all that run as it have the same identities, and else one for these. The
// account default is left alone: all pods that name no account run as it.
func (p *planner) accountName(i *item) string {
	own := i.template.ServiceAccount()
	if len(i.identities) == 0 {
		return own
	}
	ref := Ref{KindServiceAccount, i.ref.Namespace, own}
	key := i.key()
	shared := slices.ContainsFunc(p.users[ref], func(other string) bool { return other != key })
	sa := p.account[ref]
	annotated := sa != nil && strings.EqualFold(sa.GetAnnotations()[workloadidentity.AnnotationClientID], i.identities[0].ClientID)
	if !shared && (own != "default" || annotated) {
		return own
	}
	_, name, _ := strings.Cut(i.identities[0].AzureIdentity, "/")
	next := own + "-" + name
	if len(i.identities) > 1 {
		next += "-" + digest(key)
	}
	const limit = 253
	if len(next) > limit {
		next = strings.TrimRight(next[:limit-9], "-.") + "-" + digest(next)
	}
	return next
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}

// accountFor decides as which service account a workload is to run.
func (p *planner) accountFor(i *item) (Account, *Left) {
	own := i.template.ServiceAccount()
	old := p.account[Ref{KindServiceAccount, i.ref.Namespace, own}]
	if old == nil {
		return Account{}, no(AccountMissing, "its service account "+own+" does not exist", "make the service account, or name another one")
	}
	a := Account{Namespace: i.ref.Namespace, Name: p.accountName(i), Identities: i.identities}
	want := a.Identities[0].ClientID
	ref := Ref{KindServiceAccount, a.Namespace, a.Name}
	if sa := p.account[ref]; sa != nil {
		if have := sa.GetAnnotations()[workloadidentity.AnnotationClientID]; have != "" && !strings.EqualFold(have, want) {
			return Account{}, no(AccountTaken, fmt.Sprintf("the service account %s has the annotation %s: %s, and the workload has %s", a.Name, workloadidentity.AnnotationClientID, have, want),
				"give the workload another service account, or remove the annotation if nobody relies on it")
		}
	}
	if a.Name == own {
		return a, nil
	}
	key := i.key()
	if slices.ContainsFunc(p.users[ref], func(other string) bool { return other != key }) {
		return Account{}, no(AccountTaken, "it needs a service account of its own, and "+a.Name+" is used by workloads with other identities", "give the workload another service account")
	}
	a.From = own
	for _, r := range p.world.Roles {
		if hasSubject(r, a.Namespace, own) && !hasSubject(r, a.Namespace, a.Name) {
			a.Roles = append(a.Roles, RefOf(r))
		}
	}
	slices.SortFunc(a.Roles, compareRefs)
	if len(a.Roles) > 0 && !p.options.CopyRBAC {
		var names []string
		for _, r := range a.Roles {
			names = append(names, r.String())
		}
		return Account{}, no(RoleBindings, fmt.Sprintf("%s, so it needs the new one %s, which would lack what %s has by %s", p.whyNew(own), a.Name, own, strings.Join(names, ", ")),
			"--copy-rbac adds the new service account to these; or give the workload a service account of its own first")
	}
	return a, nil
}

func (p *planner) whyNew(own string) string {
	if own == "default" {
		return "every pod that names no service account runs as default"
	}
	return "workloads with other identities, or none, run as the service account " + own
}

func subjectOf(namespace, name string) map[string]any {
	return map[string]any{"kind": KindServiceAccount, "namespace": namespace, "name": name}
}

func hasSubject(role *unstructured.Unstructured, namespace, name string) bool {
	subjects, _, _ := unstructured.NestedSlice(role.Object, "subjects")
	return slices.ContainsFunc(subjects, func(s any) bool {
		m, _ := s.(map[string]any)
		ns, given := m["namespace"].(string)
		if !given {
			ns = role.GetNamespace()
		}
		return m["kind"] == KindServiceAccount && ns == namespace && m["name"] == name
	})
}

// addAccount plans the changes that an account needs, once.
func (p *planner) addAccount(a Account) {
	if slices.ContainsFunc(p.plan.Accounts, func(have Account) bool { return have.Namespace == a.Namespace && have.Name == a.Name }) {
		return
	}
	p.plan.Accounts = append(p.plan.Accounts, a)
	before := p.account[Ref{KindServiceAccount, a.Namespace, a.Name}]
	var after *unstructured.Unstructured
	if before != nil {
		after = before.DeepCopy()
	} else {
		after = &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": KindServiceAccount, "metadata": map[string]any{"namespace": a.Namespace, "name": a.Name}}}
		if old := p.account[Ref{KindServiceAccount, a.Namespace, a.From}]; old != nil {
			for _, field := range []string{"imagePullSecrets", "automountServiceAccountToken"} {
				if v, ok := old.Object[field]; ok {
					after.Object[field] = runtime.DeepCopyJSONValue(v)
				}
			}
		}
	}
	notes := after.GetAnnotations()
	if notes == nil {
		notes = map[string]string{}
	}
	first := a.Identities[0]
	if !strings.EqualFold(notes[workloadidentity.AnnotationClientID], first.ClientID) {
		notes[workloadidentity.AnnotationClientID] = first.ClientID
	}
	if _, given := notes[workloadidentity.AnnotationTenantID]; !given && first.TenantID != "" {
		notes[workloadidentity.AnnotationTenantID] = first.TenantID
	}
	if len(a.Identities) > 1 && p.plan.Federation == FederationController {
		var all []string
		for _, id := range a.Identities {
			all = append(all, id.ClientID)
		}
		notes[lanyard.AnnotationClientIDs] = strings.Join(all, ",")
	}
	after.SetAnnotations(notes)
	kind := "update"
	if before == nil {
		kind = "create"
	}
	p.change(kind, before, after)
	for _, r := range p.world.Roles {
		if slices.Contains(a.Roles, RefOf(r)) {
			next := p.latest(r).DeepCopy()
			subjects, _, _ := unstructured.NestedSlice(next.Object, "subjects")
			next.Object["subjects"] = append(subjects, subjectOf(a.Namespace, a.Name))
			p.change("update", r, next)
		}
	}
}

// latest is an object as changes so far leave it.
func (p *planner) latest(o *unstructured.Unstructured) *unstructured.Unstructured {
	for _, c := range p.plan.Changes {
		if c.Object == RefOf(o) {
			return c.After
		}
	}
	return o
}

// change adds a change, unless it is none, or extends one of the same object.
func (p *planner) change(action string, before, after *unstructured.Unstructured) {
	c := Change{Object: RefOf(after), Action: action, Before: before, After: after, Patch: after.Object}
	if before != nil {
		c.Patch = mergePatch(before, after)
		if len(c.Patch) == 0 {
			return
		}
	}
	if at := slices.IndexFunc(p.plan.Changes, func(have Change) bool { return have.Object == c.Object }); at >= 0 {
		p.plan.Changes[at] = c
		return
	}
	p.plan.Changes = append(p.plan.Changes, c)
}

func mergePatch(before, after *unstructured.Unstructured) map[string]any {
	a, errA := before.MarshalJSON()
	b, errB := after.MarshalJSON()
	raw, err := jsonpatch.CreateMergePatch(a, b)
	var u unstructured.Unstructured
	if errA != nil || errB != nil || err != nil { // JSON that came from the API server is JSON
		return map[string]any{}
	}
	if err := unmarshal(raw, &u.Object); err != nil {
		return map[string]any{}
	}
	return u.Object
}

// finish takes the label from a workload that is migrated.
func (p *planner) finish(i *item, a Account, after *unstructured.Unstructured) *Left {
	sa := p.account[Ref{KindServiceAccount, a.Namespace, a.Name}]
	if a.From != "" || i.template.Labels()[workloadidentity.LabelUse] != "true" || sa == nil || sa.GetAnnotations()[workloadidentity.AnnotationClientID] == "" {
		return no(NotMigrated, "it still depends on nmi", "migrate and verify it first, then use --finish")
	}
	for _, q := range p.world.Requests {
		pod := p.all[Ref{"Pod", q.Namespace, q.Pod}]
		if pod == nil || pod.GetLabels()[workloadidentity.LabelUse] != "true" || q.UID != "" && q.UID != string(pod.GetUID()) { // an earlier pod of that name
			continue
		}
		if root, _ := Root(pod, p.all); RefOf(root) == i.ref {
			return no(StillAsksMetadata, fmt.Sprintf("its pod %s asks nmi for tokens, as %q", q.Pod, short(q.Agent)), "annotate it with "+NeedsIMDS+`: "true" and migrate it again, so that the proxy answers`)
		}
	}
	t, _ := TemplateOf(after)
	if _, labelled := t.Labels()[v1.BindingLabel]; !labelled {
		for _, b := range i.bound {
			i.notes = append(i.notes, fmt.Sprintf("AzureIdentityBinding %s/%s chooses its pods without the label %s: delete it when nobody else needs it", b.Binding.Namespace, b.Binding.Name, v1.BindingLabel))
		}
		return nil
	}
	selector, _, _ := unstructured.NestedStringMap(i.object.Object, "spec", "selector", "matchLabels")
	if _, fixed := selector[v1.BindingLabel]; fixed {
		return no(SelectorHasLabel, "its spec.selector names the label "+v1.BindingLabel+", and never changes", "delete the AzureIdentityBinding when nobody else needs it; the label then means nothing")
	}
	t.RemoveLabel(v1.BindingLabel)
	return nil
}

// afterwards tells what people have to know about a change.
func (p *planner) afterwards(i *item, a Account, action string) []string {
	var notes []string
	if action == ActionOnDelete {
		notes = append(notes, "its update strategy is OnDelete: pods have the identity by the new way after somebody has deleted them")
	}
	if a.From != "" {
		pod := i.pod()
		pod.ServiceAccount = a.Name
		if bound, _ := binding.Of(pod, p.rules); len(bound) < len(i.bound) {
			notes = append(notes, "a binding of it names the service account "+a.From+": nmi serves its new pods no more")
		}
	}
	labels, annotations := i.object.GetLabels(), i.object.GetAnnotations()
	for _, by := range []struct{ name, label, annotation string }{
		{"Helm", "", "meta.helm.sh/release-name"},
		{"Argo CD", "argocd.argoproj.io/instance", "argocd.argoproj.io/tracking-id"},
		{"Flux", "kustomize.toolkit.fluxcd.io/name", ""},
		{"Flux", "helm.toolkit.fluxcd.io/name", ""},
	} {
		if labels[by.label] != "" || annotations[by.annotation] != "" {
			notes = append(notes, by.name+" applies it: put the change (-o yaml) into its source too, or the next time undoes it")
		}
	}
	return notes
}
