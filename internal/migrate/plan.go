package migrate

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/federated"
)

// A Plan is what has to be done, in this order: accounts, credentials, workloads.
type Plan struct {
	Issuer      string          `json:"issuer"`
	Audience    string          `json:"audience"`
	Federation  FederationMode  `json:"federation"`
	Finish      bool            `json:"finish"` // it takes nmi from what is migrated
	Accounts    []Account       `json:"serviceAccounts"`
	Credentials []NewCredential `json:"credentials"`
	Workloads   []Move          `json:"workloads"`
	Left        []Left          `json:"left"`
	// Changes are the objects of the cluster that the plan makes and changes.
	Changes []Change `json:"changes"`
}

// An Account is a service account for one or more of the planned workloads.
type Account struct {
	Namespace  string     `json:"namespace"`
	Name       string     `json:"name"`
	From       string     `json:"from,omitempty"` // the account that a new one takes the place of; empty if it is not new
	Identities []Identity `json:"identities"`     // the first is AZURE_CLIENT_ID
	Roles      []Ref      `json:"roles,omitempty"`
}

// An Identity is what a workload has now and keeps.
type Identity struct {
	AzureIdentity    string `json:"azureIdentity"` // namespace/name
	federated.Parent `json:",inline"`
}

// A NewCredential is a federated credential that is to be made.
type NewCredential struct {
	federated.Credential `json:",inline"`
	Parent               federated.Parent `json:"parent"`
	Namespace            string           `json:"namespace"`
	ServiceAccount       string           `json:"serviceAccount"`
}

// Actions on workloads.
const (
	ActionRollout  = "rollout"   // its controller replaces the pods
	ActionOnDelete = "on delete" // its controller replaces pods that somebody deletes
	ActionNextRun  = "next run"  // the next Job has it
	ActionRecreate = "recreate"  // it is deleted and made again
	ActionNone     = "none"      // it is as it should be
)

// A Move is what happens to one workload.
type Move struct {
	Workload       Ref        `json:"workload"`
	ServiceAccount string     `json:"serviceAccount"`
	Identities     []Identity `json:"identities"`
	Proxy          bool       `json:"proxy"`
	ProxyWhy       string     `json:"proxyWhy"`
	Action         string     `json:"action"`
	Notes          []string   `json:"notes,omitempty"`
}

// A Change is one object before and after. Before is nil for one that is made.
type Change struct {
	Object Ref                        `json:"object"`
	Action string                     `json:"action"` // create, update or recreate
	Patch  map[string]any             `json:"patch"`  // JSON merge patch (RFC 7386); all of an object that is made
	Before *unstructured.Unstructured `json:"-"`
	After  *unstructured.Unstructured `json:"-"`
}

// A planner holds what is known while a plan is made.
type planner struct {
	world   World
	options Options
	rules   binding.World
	all     map[Ref]*unstructured.Unstructured
	account map[Ref]*unstructured.Unstructured
	users   map[Ref][]string           // by service account: what the workloads that run as it have, see item.key
	claimed map[string][]NewCredential // by client id
	plan    Plan
}

// An item is a workload that Pod Identity v1 concerns.
type item struct {
	ref        Ref
	object     *unstructured.Unstructured
	template   Template
	bound      []binding.Bound
	problems   []binding.Problem
	identities []Identity
	left       *Left
	notes      []string
}

// Make makes a plan. It looks at nothing but its arguments; the same arguments
// make the same plan.
func Make(w World, o Options) Plan {
	p := newPlanner(w, o)
	p.plan = Plan{
		Issuer: o.Issuer, Audience: o.audience(), Federation: o.Federation, Finish: o.Finish,
		Accounts: []Account{}, Credentials: []NewCredential{}, Workloads: []Move{}, Left: []Left{}, Changes: []Change{},
	}
	if p.plan.Federation == "" {
		p.plan.Federation = FederationAzure
	}
	items := p.items()
	for _, i := range items {
		if i.left == nil {
			i.left = p.admit(i)
		}
		ref := Ref{KindServiceAccount, i.ref.Namespace, i.template.ServiceAccount()}
		if !ended(i.object) {
			p.users[ref] = append(p.users[ref], i.key())
		}
	}
	for _, i := range items {
		if !i.concerned() || !o.wants(i.ref) {
			continue
		}
		if i.left == nil {
			i.left = p.move(i)
		}
		if i.left != nil {
			i.left.Workload, i.left.Text, i.left.WayOut = i.ref, oneLine(i.left.Text), oneLine(i.left.WayOut)
			p.plan.Left = append(p.plan.Left, *i.left)
		}
	}
	return p.plan
}

// Needed returns the identities that a plan has to know Azure's facts of.
func Needed(w World, o Options) []*v1.AzureIdentity {
	p := newPlanner(w, o)
	var needed []*v1.AzureIdentity
	for _, i := range p.items() {
		for _, b := range i.bound {
			if o.wants(i.ref) && !slices.Contains(needed, b.Identity) {
				needed = append(needed, b.Identity)
			}
		}
	}
	slices.SortFunc(needed, func(a, b *v1.AzureIdentity) int { return strings.Compare(nameOf(a), nameOf(b)) })
	return needed
}

func nameOf(id *v1.AzureIdentity) string { return id.Namespace + "/" + id.Name }

func newPlanner(w World, o Options) *planner {
	p := &planner{world: w, options: o, all: index(w.Workloads), account: index(w.Accounts), users: map[Ref][]string{}, claimed: map[string][]NewCredential{}}
	byName := map[string]*v1.AzureIdentity{}
	for _, id := range w.Identities {
		byName[nameOf(id)] = id
	}
	p.rules = binding.World{
		Bindings: w.Bindings, ForceNamespaced: o.ForceNamespaced, Managed: true,
		Identity: func(namespace, name string) *v1.AzureIdentity { return byName[namespace+"/"+name] },
	}
	return p
}

// items returns every workload that stands for itself, in order.
func (p *planner) items() []*item {
	var items []*item
	for _, o := range p.world.Workloads {
		root, owner := Root(o, p.all)
		t, ok := TemplateOf(o)
		if root != o || !ok {
			continue
		}
		i := &item{ref: RefOf(o), object: o, template: t}
		pod := i.pod()
		i.bound, i.problems = binding.Of(pod, p.rules)
		switch {
		case binding.Excepted(pod, p.world.Exceptions):
			i.left = no(Excepted, "an AzurePodIdentityException of its namespace lets its pods ask the node's metadata service: they have the machine's identities, not one of a binding",
				"nothing to migrate; if it should have an identity of its own, remove the exception or the pods' label that it names")
		case owner != nil:
			i.left = no(Controlled, fmt.Sprintf("%s %s makes it, and would undo a change", owner.Kind, owner.Name),
				fmt.Sprintf("have %s %s give the pods the label %s: \"true\" and an annotated service account", owner.Kind, owner.Name, workloadidentity.LabelUse))
		}
		items = append(items, i)
	}
	slices.SortFunc(items, func(a, b *item) int { return compareRefs(a.ref, b.ref) })
	return items
}

func (i *item) pod() binding.Pod {
	return binding.Pod{Namespace: i.ref.Namespace, Name: i.ref.Name, ServiceAccount: i.template.ServiceAccount(), Labels: i.template.Labels()}
}

// concerned reports whether v1 has to do with the workload at all.
func (i *item) concerned() bool {
	_, labelled := i.template.Labels()[v1.BindingLabel]
	return labelled || len(i.bound) > 0 || len(i.problems) > 0 || i.left != nil && i.left.Reason == Excepted
}

// key stands for what the workload's pods can be: two with the same key may share
// a service account.
func (i *item) key() string {
	var ids []string
	for _, id := range i.identities {
		ids = append(ids, strings.ToLower(id.ClientID))
	}
	if len(ids) == 0 {
		for _, b := range i.bound {
			ids = append(ids, "?"+nameOf(b.Identity))
		}
	}
	slices.Sort(ids)
	return strings.Join(ids, ",")
}

// admit judges what does not depend on other workloads, and finds the identities.
func (p *planner) admit(i *item) *Left {
	if !i.concerned() {
		p.alreadyMoved(i)
		return nil
	}
	if len(i.bound) == 0 {
		text := fmt.Sprintf("no AzureIdentityBinding has the selector %q, which is its pods' label %s", i.template.Labels()[v1.BindingLabel], v1.BindingLabel)
		if len(i.problems) > 0 {
			text = i.problems[0].Text(i.pod())
		}
		return no(NoIdentity, text, "it gets no token from nmi either: correct the binding, or remove the label")
	}
	return p.resolve(i)
}

// alreadyMoved tells of a workload that v1 concerns no more what it has.
func (p *planner) alreadyMoved(i *item) {
	if !strings.EqualFold(i.template.Labels()[workloadidentity.LabelUse], "true") {
		return
	}
	sa := p.account[Ref{KindServiceAccount, i.ref.Namespace, i.template.ServiceAccount()}]
	if sa == nil {
		return
	}
	for _, id := range accountClients(sa) {
		i.identities = append(i.identities, Identity{Parent: federated.Parent{ClientID: id}})
	}
}

// accountClients are the client ids that a service account is annotated with.
func accountClients(sa *unstructured.Unstructured) []string {
	var ids []string
	a := sa.GetAnnotations()
	for _, id := range append([]string{a[workloadidentity.AnnotationClientID]}, strings.Split(a[lanyard.AnnotationClientIDs], ",")...) {
		if id = strings.TrimSpace(id); id != "" && !slices.ContainsFunc(ids, func(have string) bool { return strings.EqualFold(have, id) }) {
			ids = append(ids, id)
		}
	}
	return ids
}

// move plans one workload.
func (p *planner) move(i *item) *Left {
	inject, why := p.proxy(i)
	switch t := i.template; {
	case t.HostNetwork() && inject:
		return no(HostNetwork, "its pods have the node's network: nmi never answered them, they get the machine's identities, and the proxy sidecar cannot run there ("+why+")",
			"if its Azure SDK knows workload identity, annotate it with "+NeedsIMDS+`: "false" (its identity may then be another than now); otherwise take it off the host's network`)
	case t.Windows() && inject:
		return no(Windows, "its pods run on Windows, where the proxy sidecar does not ("+why+")", "if its Azure SDK knows workload identity, annotate it with "+NeedsIMDS+`: "false"`)
	}
	account, left := p.accountFor(i)
	if left != nil {
		return left
	}
	after := i.object.DeepCopy()
	t, _ := TemplateOf(after)
	if t.Labels()[workloadidentity.LabelUse] != "true" {
		t.SetLabel(workloadidentity.LabelUse, "true")
	}
	if t.ServiceAccount() != account.Name {
		t.SetServiceAccount(account.Name)
	}
	if inject {
		setProxy(t)
	}
	m := Move{Workload: i.ref, ServiceAccount: account.Name, Identities: i.identities, Proxy: inject, ProxyWhy: why}
	if p.options.Finish {
		if left := p.finish(i, account, after); left != nil {
			return left
		}
	}
	changed := !reflect.DeepEqual(i.object.Object, after.Object)
	if m.Action, left = p.action(i, changed); left != nil {
		return left
	}
	if left := p.claim(i, account); left != nil {
		return left
	}
	p.addAccount(account)
	m.Notes = append(i.notes, p.afterwards(i, account, m.Action)...)
	p.plan.Workloads = append(p.plan.Workloads, m)
	if changed {
		kind := "update"
		if m.Action == ActionRecreate {
			kind = "recreate"
		}
		p.change(kind, i.object, after)
	}
	return nil
}

// setProxy asks for the sidecar, on a port that no container has.
func setProxy(t Template) {
	if t.Annotations()[workloadidentity.AnnotationInjectProxySidecar] != "true" {
		t.SetAnnotation(workloadidentity.AnnotationInjectProxySidecar, "true")
	}
	const usual = 8000
	used := t.ports()
	if _, chosen := t.Annotations()[workloadidentity.AnnotationProxySidecarPort]; chosen || !used[usual] {
		return
	}
	port := int64(usual)
	for used[port] {
		port++
	}
	t.SetAnnotation(workloadidentity.AnnotationProxySidecarPort, strconv.FormatInt(port, 10))
}

// action says how a change reaches the pods.
func (p *planner) action(i *item, changed bool) (string, *Left) {
	if !changed {
		return ActionNone, nil
	}
	text := func(path ...string) string { s, _, _ := unstructured.NestedString(i.object.Object, path...); return s }
	flag := func(path ...string) bool { b, _, _ := unstructured.NestedBool(i.object.Object, path...); return b }
	switch i.ref.Kind {
	case "Deployment":
		if flag("spec", "paused") {
			return "", no(Paused, "its rollout is paused, so that no pod would change", "kubectl rollout resume deployment/"+i.ref.Name+" -n "+i.ref.Namespace+", then migrate it")
		}
		return ActionRollout, nil
	case "StatefulSet", "DaemonSet":
		if text("spec", "updateStrategy", "type") == "OnDelete" {
			return ActionOnDelete, nil
		}
		return ActionRollout, nil
	case "CronJob":
		return ActionNextRun, nil
	case "Job":
		switch {
		case ended(i.object):
			return "", no(Finished, "it has ended", "nothing to do; a Job like it that is made later needs the label and the service account")
		case p.options.RecreateJobs && !p.options.Finish:
			return ActionRecreate, nil
		case flag("spec", "suspend"):
			return "", no(Immutable, "it is suspended, and the pod template of a Job never changes", "--recreate-jobs deletes it and makes it again")
		default:
			return "", no(Running, "it runs, and the pod template of a Job never changes", "let it finish under Pod Identity; --recreate-jobs deletes it and makes it again, which starts its work anew")
		}
	case "Pod":
		return "", no(BarePod, "a pod's service account never changes, and no controller makes this pod again", "make it again with the label "+workloadidentity.LabelUse+`: "true" and the service account `+p.accountName(i)+", better by a Deployment or a Job")
	default:
		return "", no(NoRollout, "a "+i.ref.Kind+" does not replace its pods when the template changes", "make it a Deployment, which migrates by itself")
	}
}

// ended reports whether a Job or a pod has ended.
func ended(o *unstructured.Unstructured) bool {
	switch o.GetKind() {
	case "Pod":
		phase, _, _ := unstructured.NestedString(o.Object, "status", "phase")
		return phase == "Succeeded" || phase == "Failed"
	case "Job":
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		return slices.ContainsFunc(conditions, func(c any) bool {
			m, _ := c.(map[string]any)
			return m["status"] == "True" && (m["type"] == "Complete" || m["type"] == "Failed")
		})
	}
	return false
}
