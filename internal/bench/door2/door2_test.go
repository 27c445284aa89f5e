package door2

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/bench"
	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
)

func TestTheReviewIsOfThePodThatV16WasMeasuredWith(t *testing.T) {
	if n := len(onePod); n < 1750 || n > 1850 {
		t.Errorf("the pod has %d bytes instead of 1.8 kB", n)
	}
	body, err := review("sa-00007", map[string]string{workloadidentity.AnnotationInjectProxySidecar: "true"})
	if err != nil {
		t.Fatal(err)
	}
	var r admissionv1.AdmissionReview
	var p corev1.Pod
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(r.Request.Object.Raw, &p); err != nil {
		t.Fatal(err)
	}
	got := []any{len(p.Spec.Containers), p.Spec.ServiceAccountName, p.Labels[workloadidentity.LabelUse], p.Annotations[workloadidentity.AnnotationInjectProxySidecar], r.Request.Namespace, p.Namespace}
	if diff := cmp.Diff([]any{2, "sa-00007", "true", "true", "team-00", "team-00"}, got); diff != "" {
		t.Error(diff)
	}
}

// answers are a webhook that answers each request with the text for its number.
func answers(t *testing.T, text func(n int64) (status int, body string)) *caller {
	t.Helper()
	var n atomic.Int64
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status, body := text(n.Add(1))
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	t.Cleanup(s.Close)
	return &caller{http: s.Client(), url: s.URL}
}

func patched(clientID string) string {
	return fmt.Sprintf(`{"response":{"allowed":true,"patch":%q}}`, base64.StdEncoding.EncodeToString([]byte(`[{"value":"`+clientID+`"}]`)))
}

func TestOnlyAWebhookThatGivesTheIdentityIsMeasured(t *testing.T) {
	id := standin.ClientID(1)
	for name, tt := range map[string]struct {
		answer func(int64) (int, string)
		err    string
	}{
		"one that does":                    {func(int64) (int, string) { return 200, patched(id) }, ""},
		"one that is not there yet":        {func(int64) (int, string) { return 404, "404 page not found" }, "404"},
		"one that denies":                  {func(int64) (int, string) { return 200, `{"response":{"allowed":false}}` }, "gives no identity"},
		"one that admits without identity": {func(int64) (int, string) { return 200, `{"response":{"allowed":true}}` }, "gives no identity"},
		"one that gives another identity":  {func(int64) (int, string) { return 200, patched(standin.ClientID(2)) }, "gives no identity"},
		"one that stops to later": {func(n int64) (int, string) {
			if n > 20 {
				return 200, `{"response":{"allowed":true}}`
			}
			return 200, patched(id)
		}, "not as the first"},
		"one that breaks later": {func(n int64) (int, string) {
			if n > 20 {
				return 500, "oops"
			}
			return 200, patched(id)
		}, "500"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := answers(t, tt.answer).load(t.Context(), []byte(`{}`), id, os.Getpid(), 50*time.Millisecond)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want one with %q", err, tt.err)
			}
			if err == nil && (r.Requests == 0 || r.Requests != len(r.Latencies) || r.Elapsed < 50*time.Millisecond) {
				t.Errorf("%d requests, %d latencies in %s", r.Requests, len(r.Latencies), r.Elapsed)
			}
		})
	}
}

func TestTheMiddleOfTheFirstAdmissionsCountsAndAllAreTold(t *testing.T) {
	all := []firstOne{{ready: time.Second, took: 90 * time.Millisecond}, {took: 2 * time.Millisecond}, {took: 3 * time.Millisecond}}
	if got := typical(all); got != 3*time.Millisecond {
		t.Errorf("the median is %s", got)
	}
	if text := describe(all); !strings.HasPrefix(text, "90.0 ms, 2.0 ms, 3.0 ms with") {
		t.Error(text)
	}
}

func TestAnAdmissionThatCostsTooMuchMisses(t *testing.T) {
	for per, ok := range map[time.Duration]bool{100 * time.Microsecond: true, 150 * time.Microsecond: false, 0: false} {
		if m := admission("admission-cpu", load.Result{Requests: 1000, CPU: 1000 * per, Elapsed: time.Second}, reachCPU, ""); m.OK != ok {
			t.Errorf("%s: %+v", per, m)
		}
	}
}

func TestFederationsAreFollowedUntilTheLastOneIsUsable(t *testing.T) {
	federation := func(name string, conditions ...string) *lanyard.FederatedIdentity {
		f := &lanyard.FederatedIdentity{ObjectMeta: metav1.ObjectMeta{Name: name}}
		for _, c := range conditions {
			f.Status.Conditions = append(f.Status.Conditions, metav1.Condition{Type: c, Status: metav1.ConditionTrue})
		}
		return f
	}
	w := watch.NewFakeWithChanSize(10, false)
	w.Add(federation("a"))
	w.Modify(federation("a", lanyard.ConditionCreated))
	w.Modify(federation("b", lanyard.ConditionCreated, lanyard.ConditionReady))
	w.Modify(federation("b", lanyard.ConditionCreated, lanyard.ConditionReady))
	w.Modify(federation("a", lanyard.ConditionCreated, lanyard.ConditionReady))
	created, usable, err := follow(t.Context(), w, time.Now().Add(-time.Minute), 2)
	if err != nil || created < time.Minute || usable < created {
		t.Errorf("created after %s, usable after %s, %v", created, usable, err)
	}
	w.Modify(federation("b", lanyard.ConditionReady))
	w.Stop()
	if _, _, err := follow(t.Context(), w, time.Now(), 2); err == nil {
		t.Error("a watch that ends passes")
	}
}

func TestRequestsToAzureAreCounted(t *testing.T) {
	const text = `# TYPE lanyard_federation_azure_requests_total counter
lanyard_federation_azure_requests_total{operation="put",result="ok"} 100
lanyard_federation_azure_requests_total{operation="put",result="throttled"} 2
lanyard_federation_azure_request_duration_seconds_count{operation="put"} 102
`
	if diff := cmp.Diff(map[string]float64{"put ok": 100, "put throttled": 2}, countRequests(text)); diff != "" {
		t.Error(diff)
	}
}

func TestFewerAccountsAreNotComparedWithV16(t *testing.T) {
	m := []bench.Measurement{{Now: "2 ms", Ratio: "700 times"}, {Now: "not measured", Error: "no control group"}}
	if got := qualify(m, manyAccounts); got[0].Ratio != "700 times" {
		t.Errorf("all of them: %+v", got[0])
	}
	if got := qualify(m, 5000); got[0].Now != "2 ms at 5000" || got[0].Ratio != "" || got[1].Now != "not measured" {
		t.Errorf("a tenth of them: %+v", got)
	}
}
