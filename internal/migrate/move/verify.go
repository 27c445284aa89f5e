package move

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move/record"
	"github.com/lanyard-id/lanyard/internal/migrate/move/survey"
)

// A Verdict is what a verification found out of one workload.
type Verdict struct {
	Workload       migrate.Ref `json:"workload"`
	ServiceAccount string      `json:"serviceAccount"`
	OK             bool        `json:"ok"`
	Tokens         []Proof     `json:"tokens"`
	Pods           int         `json:"pods"` // that run now and have what the webhook gives
	Problems       []string    `json:"problems,omitempty"`
	Notes          []string    `json:"notes,omitempty"`
}

// A Proof is one exchange.
type Proof struct {
	AzureIdentity string `json:"azureIdentity"`
	Pod           string `json:"pod,omitempty"` // that the service account's token was bound to
	OK            bool   `json:"ok"`            // Entra gave a token, and it is of the same identity
	Claims
	Error string `json:"error,omitempty"`
}

func (v *Verdict) problem(format string, args ...any) {
	v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
}

// Verify gets, for each migrated workload, a token in the way its pods do, and
// compares whose it is. No workloads means all that were migrated.
func (m *Mover) Verify(ctx context.Context, namespace string, workloads []migrate.Ref) ([]Verdict, error) {
	records, err := m.Records(ctx, namespace)
	if err != nil {
		return nil, err
	}
	records, err = chosen(records, workloads)
	if err != nil {
		return nil, err
	}
	var verdicts []Verdict
	pods := map[string]map[migrate.Ref][]*unstructured.Unstructured{}
	for _, r := range records {
		if pods[r.Namespace] == nil {
			if pods[r.Namespace], err = m.podsOf(ctx, r.Namespace); err != nil {
				return nil, err
			}
		}
		verdicts = append(verdicts, m.verify(ctx, r, pods[r.Namespace][r.Object]))
	}
	return verdicts, nil
}

// chosen are the records of workloads, all or those that are named.
func chosen(records []*record.Record, workloads []migrate.Ref) ([]*record.Record, error) {
	var out []*record.Record
	for _, r := range records {
		if r.IsWorkload() && (len(workloads) == 0 || slices.Contains(workloads, r.Object)) {
			out = append(out, r)
		}
	}
	for _, w := range workloads {
		if !slices.ContainsFunc(out, func(r *record.Record) bool { return r.Object == w }) {
			return nil, fmt.Errorf("%s was not migrated: there is no record of it", w)
		}
	}
	return out, nil
}

// podsOf returns the pods of a namespace that run, by the workload that they
// belong to.
func (m *Mover) podsOf(ctx context.Context, namespace string) (map[migrate.Ref][]*unstructured.Unstructured, error) {
	all := map[migrate.Ref]*unstructured.Unstructured{}
	var pods []*unstructured.Unstructured
	for _, k := range migrate.Kinds() {
		list, err := survey.List(ctx, m.Objects, k.Resource, namespace, k.Kind)
		if err != nil {
			return nil, err
		}
		for _, o := range list {
			all[migrate.RefOf(o)] = o
		}
		if k.Kind == "Pod" {
			pods = list
		}
	}
	out := map[migrate.Ref][]*unstructured.Unstructured{}
	for _, p := range pods {
		phase, _, _ := unstructured.NestedString(p.Object, "status", "phase")
		if p.GetDeletionTimestamp() != nil || phase == "Succeeded" || phase == "Failed" {
			continue
		}
		root, _ := migrate.Root(p, all)
		out[migrate.RefOf(root)] = append(out[migrate.RefOf(root)], p)
	}
	return out, nil
}

func (m *Mover) verify(ctx context.Context, r *record.Record, pods []*unstructured.Unstructured) Verdict {
	v := Verdict{Workload: r.Object, ServiceAccount: r.ServiceAccount, Tokens: []Proof{}}
	now, err := m.get(ctx, r.Object)
	switch {
	case err != nil:
		v.problem("%v", err)
		return v
	case now == nil:
		v.problem("it is gone")
		return v
	}
	t, ok := migrate.TemplateOf(now)
	if !ok || !strings.EqualFold(t.Labels()[workloadidentity.LabelUse], "true") || t.ServiceAccount() != r.ServiceAccount {
		v.problem("its pod template is no more as it was migrated: it runs as service account %s, label %s %q", t.ServiceAccount(), workloadidentity.LabelUse, t.Labels()[workloadidentity.LabelUse])
	}
	var pod bound
	for _, p := range pods {
		account, _, _ := unstructured.NestedString(p.Object, "spec", "serviceAccountName")
		switch lacks := unmutated(p, r.Audience, r.Proxy); {
		case account != r.ServiceAccount:
			v.oldPod(now, "pod %s runs as service account %s: it is older than the migration", p.GetName(), account)
		case lacks != "":
			v.oldPod(now, "pod %s has not what the webhook gives (%s): delete it, so that its controller makes it again", p.GetName(), lacks)
		default:
			v.Pods++
			if pod.name == "" {
				pod = bound{p.GetName(), p.GetUID()}
			}
		}
	}
	if pod.name == "" {
		v.Notes = append(v.Notes, "no pod of it runs now: the token was that of the service account alone")
	}
	for _, id := range r.Identities {
		m.step("%s: a token of %s", r.Object, id.AzureIdentity)
		p := Proof{AzureIdentity: id.AzureIdentity, Pod: pod.name}
		p.Claims, err = m.exchange(ctx, r.Namespace, r.ServiceAccount, r.Audience, pod, id)
		if err != nil {
			p.Error = err.Error()
		} else {
			p.Error = differ(p.Claims, id)
		}
		if p.OK = p.Error == ""; !p.OK {
			v.problem("%s: %s", id.AzureIdentity, p.Error)
		}
		v.Tokens = append(v.Tokens, p)
	}
	v.OK = len(v.Problems) == 0
	return v
}

// oldPod notes a pod that was there before: of a CronJob, whose Jobs end by
// themselves, that is as it should be.
func (v *Verdict) oldPod(workload *unstructured.Unstructured, format string, args ...any) {
	if workload.GetKind() == "CronJob" {
		v.Notes = append(v.Notes, fmt.Sprintf(format, args...))
		return
	}
	v.problem(format, args...)
}
