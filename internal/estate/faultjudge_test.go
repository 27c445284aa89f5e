package estate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/imds"
)

// holds asserts what must be true whatever happened, at the latest after a
// moment: assignments are what pods need, the machine carries their union and
// nothing else, the cloud's state is sound, and nobody ever got another's token.
func (b *bed) holds(t *testing.T, limit time.Duration) {
	t.Helper()
	until(t, limit, "everything is as it should be", func(ctx context.Context) error {
		want, machine, err := b.needed(ctx)
		if err != nil {
			return err
		}
		got, err := b.assigned(ctx)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("assignments (-what pods need +what there is):\n%s", diff)
		}
		carried, err := b.carried(ctx, ownSet)
		if err != nil {
			return err
		}
		if diff := cmp.Diff(machine, carried); diff != "" {
			return fmt.Errorf("identities of the machine (-what pods need +what there is):\n%s", diff)
		}
		return b.readAll(ctx)
	})
	if err := b.Cloud.Check(); err != nil {
		t.Errorf("the cloud's own state is broken: %v", err)
	}
	b.judge(t)
	if pod, _ := b.leader(t); pod != b.leads {
		t.Logf("%s leads", pod) // it took its time to: some fifteen seconds unless it was told
		b.leads = pod
	}
}

// needed says which pod needs which identity, and their union.
func (b *bed) needed(ctx context.Context) (pods, machine []string, err error) {
	list, err := b.Lab.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "aadpodidbinding"})
	if err != nil {
		return nil, nil, err
	}
	union := map[string]bool{}
	for _, p := range list.Items {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Spec.NodeName != b.node() {
			continue
		}
		identity := p.Labels["aadpodidbinding"]
		pods = append(pods, p.Name+" "+identity+" "+v1.AssignedIDAssigned)
		union[identity] = true
	}
	slices.Sort(pods)
	return pods, slices.Sorted(maps.Keys(union)), nil
}

func (b *bed) node() string { return "aks-nodepool1-vmss000000" }

func (b *bed) assigned(ctx context.Context) (pods []string, err error) {
	var list v1.AzureAssignedIdentityList
	if err := b.Objects.List(ctx, &list); err != nil {
		return nil, err
	}
	for _, a := range list.Items {
		if a.Spec.NodeName == b.node() {
			pods = append(pods, a.Spec.Pod+" "+a.Spec.AzureIdentityRef.Name+" "+a.Status.Status)
		}
	}
	slices.Sort(pods)
	return pods, nil
}

// carried asks Resource Manager what a scale set carries.
func (b *bed) carried(ctx context.Context, set string) ([]string, error) {
	token, err := b.owner.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{azure.ResourceManagement + "/.default"}})
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, azure.ResourceManagement+b.sets[set]+"?api-version=2024-07-01", nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token.Token)
	res, err := b.azure.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var body struct {
		Identity struct {
			UserAssigned map[string]any `json:"userAssignedIdentities"`
		} `json:"identity"`
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil || res.StatusCode != 200 {
		return nil, fmt.Errorf("reading %s: %s, %w", set, res.Status, err)
	}
	var names []string
	for id := range body.Identity.UserAssigned {
		names = append(names, strings.ToLower(path.Base(id)))
	}
	slices.Sort(names)
	return names, nil
}

// judge asserts that no pod ever got the token of another, and that no pod's
// request ever reached the metadata service itself.
func (b *bed) judge(t *testing.T) {
	t.Helper()
	for _, w := range b.pods {
		own := b.identities[w.identity] // of nobody: nothing
		for _, a := range w.answers {
			if a.Status == 200 && (w.identity == "" || a.Identity.ClientID != own.ClientID || a.Identity.ObjectID != own.PrincipalID) {
				t.Errorf("the pod %s, which may be %q, got another's token: %v", w.name, w.identity, a)
			}
			if a.Status == 200 && !a.Expires.After(a.At) {
				t.Errorf("the pod %s got a token that had expired: %v until %s", w.name, a, a.Expires)
			}
		}
	}
	for _, e := range b.asked(hostIMDS, time.Time{}) {
		if e.Path != imds.TokenPath {
			t.Errorf("a request reached the metadata service that is not nmi's: %+v", e)
		}
	}
}

// judgeSees asserts that a pod's request would have been seen by judge: the
// node itself, which nothing redirects, asks as a pod does.
func (b *bed) judgeSees(t *testing.T) {
	t.Helper()
	from := time.Now()
	node := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: b.Lab.Netns.DialContext, DisableKeepAlives: true}}
	res, err := node.Get("http://" + hostIMDS + pathOfPods)
	must(t, err)
	must(t, res.Body.Close())
	until(t, 5*time.Second, "the cloud's log has the node's own request", func(context.Context) error {
		if seen := b.asked(hostIMDS, from); !slices.ContainsFunc(seen, func(e journal.Entry) bool { return e.Path == pathOfPods }) {
			return fmt.Errorf("it has %+v", seen)
		}
		return nil
	})
}
