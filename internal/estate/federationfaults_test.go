package estate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/fault"
)

// managerThrottles: Resource Manager answers 429 for ten minutes, at a scale of
// 1:30, that is for 20 s: its Retry-After of three minutes is 6 s here. The
// controller waits that long or a little more (here up to the interval, in a
// storm of an hour at most a minute more), nothing is lost, and all is done soon after.
func managerThrottles(t *testing.T, s *shop) {
	const storm, retryAfter = 20 * time.Second, 6 * time.Second
	s.allow(t, "storm", "violet")
	leaver := s.account(t, namespace, "leaver", "violet")
	s.untilReady(t, 30*time.Second)

	hits, end := s.fail(t, fault.Rule{
		Host: azure.HostManagement, Path: "**/federatedIdentityCredentials**", Status: http.StatusTooManyRequests, RetryAfter: fault.Duration(retryAfter),
	})
	from := time.Now()
	must(t, s.Objects.Delete(t.Context(), leaver))
	for i, identity := range []string{"violet", "green", "amber"} {
		s.account(t, namespace, fmt.Sprintf("late-%d", i), identity)
	}
	until(t, 15*time.Second, "who waits is told why", func(ctx context.Context) error {
		for i := range 3 {
			list, err := s.claims(ctx, fmt.Sprintf("late-%d", i))
			if err != nil || len(list) != 1 {
				return fmt.Errorf("%d claims, %w", len(list), err)
			}
			if err := condition(&list[0], lanyard.ConditionCreated, metav1.ConditionFalse, "Throttled"); err != nil {
				return err
			}
		}
		return nil
	})
	s.lasts(t, time.Until(from.Add(storm)))
	old, err := s.claims(t.Context(), "red")
	must(t, err)
	for i := range old { // what is there is not doubted
		if err := condition(&old[i], lanyard.ConditionReady, metav1.ConditionTrue, ""); err != nil {
			t.Error(err)
		}
	}
	throttled := hits()
	end()
	over := time.Now()
	// Five identities are looked after: each asks once, and again after each Retry-After.
	perIdentity := map[string]int{}
	for _, e := range s.asked(azure.HostManagement, from) {
		if e.Status == http.StatusTooManyRequests {
			before, _, _ := strings.Cut(strings.ToLower(e.Path), "/federatedidentitycredentials")
			perIdentity[before[strings.LastIndex(before, "/")+1:]]++
		}
	}
	t.Logf("%d requests were throttled: %v", throttled, perIdentity)
	most := int(storm/retryAfter) + 1
	for identity, n := range perIdentity {
		if n > most {
			t.Errorf("%s was asked about %d times in %s although Azure asks to wait %s", identity, n, storm, retryAfter)
		}
	}
	if len(perIdentity) < 3 || throttled < 6 {
		t.Errorf("the storm met %d requests: this proves nothing", throttled)
	}
	counted := 0.0
	for _, operation := range []string{"list", "put", "delete"} {
		counted += s.counted(t, system, "8888", fmt.Sprintf(`lanyard_federation_azure_requests_total{operation=%q,result="throttled"}`, operation))
	}
	if int(counted) < throttled {
		t.Errorf("%v of %d throttled requests are counted", counted, throttled)
	}
	// All that was wanted meanwhile is done after one more pause, and the tenth of
	// it by which the controller varies it.
	s.untilReady(t, interval+interval/10+5*time.Second)
	t.Logf("all is well %.1f s after the storm", time.Since(over).Seconds())
	until(t, 10*time.Second, "the credentials are what the accounts want", func(ctx context.Context) error {
		got, err := s.credentials(ctx, "violet")
		if want := []string{"default:late-0"}; err != nil || !slices.Equal(got, want) {
			return fmt.Errorf("violet trusts %v, %w", got, err)
		}
		return nil
	})
}

// handsInAzure: what people do in Azure past the controller is put right, or told.
func handsInAzure(t *testing.T, s *shop) {
	t.Run("a credential is deleted", func(t *testing.T) {
		f := s.claim(t, "late-0")
		since := f.Status.UsableSince.Time
		existed, err := s.store.Delete(t.Context(), s.parent("violet"), f.Status.CredentialName)
		if err != nil || !existed {
			t.Fatalf("%v, %v: this proves nothing", existed, err)
		}
		until(t, 2*interval, "the credential is there again", func(ctx context.Context) error {
			got, err := s.credentials(ctx, "violet")
			if len(got) != 1 {
				return fmt.Errorf("violet trusts %v, %w", got, err)
			}
			return nil
		})
		s.untilReady(t, 20*time.Second)
		if f := s.claim(t, "late-0"); !f.Status.UsableSince.After(since) {
			t.Errorf("it is usable since %s, which was before: nobody has tried it", f.Status.UsableSince)
		}
		s.event(t, f.Name, "Restored")
	})
	t.Run("a policy is removed", func(t *testing.T) {
		must(t, s.Objects.Delete(t.Context(), &lanyard.FederationPolicy{ObjectMeta: metav1.ObjectMeta{Name: "storm"}}))
		until(t, 20*time.Second, "the credential is gone and the claim told", func(ctx context.Context) error {
			got, err := s.credentials(ctx, "violet")
			if err != nil || len(got) > 0 {
				return fmt.Errorf("violet trusts %v, %w", got, err)
			}
			list, err := s.claims(ctx, "late-0")
			if err != nil || len(list) != 1 {
				return fmt.Errorf("%d claims, %w", len(list), err)
			}
			return condition(&list[0], lanyard.ConditionAccepted, metav1.ConditionFalse, "NotAllowed")
		})
		// Entra refuses now what it took before.
		p := labelled("disallowed", "late-0", s.sdk("main", "--wait=0s"))
		must(t, s.Objects.Create(t.Context(), p))
		until(t, 20*time.Second, "Entra refuses the pod", func(ctx context.Context) error {
			r, err := s.report(ctx, p, "main")
			if err == nil && (r.OK || !strings.Contains(r.Error, "AADSTS")) {
				err = fmt.Errorf("%+v", r)
			}
			return err
		})
		must(t, s.Objects.Delete(t.Context(), p))
	})
	t.Run("an identity is deleted", func(t *testing.T) {
		account := s.claim(t, "late-2").Spec.ServiceAccountName
		s.deleteIdentity(t, "amber")
		until(t, 2*interval, "the claim says that the identity is gone", func(ctx context.Context) error {
			list, err := s.claims(ctx, account)
			if err != nil || len(list) != 1 {
				return fmt.Errorf("%d claims, %w", len(list), err)
			}
			return errors.Join(condition(&list[0], lanyard.ConditionCreated, metav1.ConditionFalse, "IdentityNotFound"),
				condition(&list[0], lanyard.ConditionReady, metav1.ConditionFalse, ""))
		})
		s.event(t, s.claim(t, account).Name, "IdentityNotFound")
		// Its service account can go although there is nothing in Azure any more.
		must(t, s.Objects.Delete(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}))
		until(t, 20*time.Second, "the claim is gone", func(ctx context.Context) error {
			list, err := s.claims(ctx, account)
			if err != nil || len(list) > 0 {
				return fmt.Errorf("%+v, %w", list, err)
			}
			return nil
		})
	})
	if n := s.counted(t, system, "8888", "lanyard_federation_abandoned_total"); n != 0 {
		t.Errorf("%v credentials were left behind", n)
	}
}

// claim is the FederatedIdentity of a service account that has one.
func (s *shop) claim(t *testing.T, account string) lanyard.FederatedIdentity {
	t.Helper()
	list, err := s.claims(t.Context(), account)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d claims, %v", len(list), err)
	}
	return list[0]
}

// event waits for an event about an object.
func (s *shop) event(t *testing.T, about, reason string) {
	t.Helper()
	until(t, 10*time.Second, "the event "+reason+" about "+about, func(ctx context.Context) error {
		var list eventsv1.EventList
		if err := s.Objects.List(ctx, &list); err != nil {
			return err
		}
		var reasons []string
		for _, e := range list.Items {
			if e.Regarding.Name == about {
				reasons = append(reasons, e.Reason)
			}
		}
		if !slices.Contains(reasons, reason) {
			return fmt.Errorf("there are %v", reasons)
		}
		return nil
	})
}

// deleteIdentity does what its owner may do.
func (s *shop) deleteIdentity(t *testing.T, name string) {
	t.Helper()
	token, err := s.owner.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azure.ResourceManagement + "/.default"}})
	must(t, err)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, azure.ResourceManagement+s.identities[name].ResourceID+"?api-version=2023-01-31", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+token.Token)
	res, err := s.azure.Do(r)
	must(t, err)
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusNoContent {
		t.Fatalf("deleting %s: %s", name, res.Status)
	}
}
