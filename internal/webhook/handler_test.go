package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// accounts is the service accounts of a cluster, by namespace/name.
type accounts map[string]map[string]string

func (a accounts) ServiceAccount(ctx context.Context, namespace, name string) (mutation.ServiceAccount, error) {
	switch name {
	case "unreadable":
		return mutation.ServiceAccount{}, errors.New("dial tcp 10.0.0.1:443: connection refused")
	case "panic":
		panic("a bug")
	case "slow":
		<-ctx.Done()
		return mutation.ServiceAccount{}, ctx.Err()
	}
	found, ok := a[namespace+"/"+name]
	if !ok {
		return mutation.ServiceAccount{}, fmt.Errorf("%w: %s/%s", ErrNotFound, namespace, name)
	}
	return mutation.ServiceAccount{Annotations: found}, nil
}

type fixture struct {
	*httptest.Server
	log     bytes.Buffer
	metrics *Metrics
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{metrics: NewMetrics(func() int { return 1 })}
	f.Server = httptest.NewServer(&Handler{
		ServiceAccounts: accounts{
			"default/pod-identity-sa": {"azure.workload.identity/client-id": "11111111-2222-3333-4444-555555555555"},
			"default/bad-sa":          {"azure.workload.identity/service-account-token-expiration": "1"},
		},
		Config: testConfig, Metrics: f.metrics, Logger: slog.New(slog.NewTextHandler(&f.log, nil)),
	})
	t.Cleanup(f.Close)
	return f
}

func (f *fixture) post(t *testing.T, contentType, query, body string) (int, string) {
	t.Helper()
	resp, err := http.Post(f.URL+"/mutate-v1-pod"+query, contentType, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

const (
	labelledPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"app-","labels":{"azure.workload.identity/use":"true"}},"spec":{"serviceAccountName":"%s","containers":[{"name":"main"}]}}`
	reviewOf    = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","resource":{"group":"","version":"v1","resource":"%s"},"subResource":"%s","namespace":"default","operation":"%s","object":%s}}`
)

func createPod(pod string) string { return fmt.Sprintf(reviewOf, "pods", "", "CREATE", pod) }

func TestReviewsAreAnswered(t *testing.T) {
	labelled := func(account string) string { return createPod(fmt.Sprintf(labelledPod, account)) }
	tests := map[string]struct {
		body         string
		query        string
		allowed      bool
		patched      bool
		code         int32
		message, log string
		notMessage   string
		counted      decision
	}{
		"a pod that asks gets its identity": {body: labelled("pod-identity-sa"), allowed: true, patched: true,
			log: `clientID=11111111-2222-3333-4444-555555555555`, counted: decisionMutated},
		"a pod without the label is left alone": {body: createPod(`{"metadata":{"labels":{"azure.workload.identity/use":"false"}},"spec":{}}`), allowed: true, counted: decisionUnchanged},
		"an update is left alone":               {body: fmt.Sprintf(reviewOf, "pods", "", "UPDATE", fmt.Sprintf(labelledPod, "nobody")), allowed: true, counted: decisionUnchanged},
		"a binding of a pod is left alone":      {body: fmt.Sprintf(reviewOf, "pods", "binding", "CREATE", `{}`), allowed: true, counted: decisionUnchanged},
		"another resource is left alone":        {body: fmt.Sprintf(reviewOf, "secrets", "", "CREATE", `{}`), allowed: true, counted: decisionUnchanged},
		"a missing service account is named": {body: labelled("nobody"), code: 400,
			message: `serviceaccounts "nobody" not found in namespace "default": create it`, log: "pod denied", counted: decisionDenied},
		"an unreadable service account fails closed without the reason": {body: labelled("unreadable"), code: 503,
			message: "service account default/unreadable could not be read", notMessage: "10.0.0.1", log: "10.0.0.1:443: connection refused", counted: decisionFailed},
		"a slow API server is answered for in time": {body: labelled("slow"), query: "?timeout=100ms", code: 503,
			message: "could not be read", log: "deadline exceeded", counted: decisionFailed},
		"a panic is a denial without the reason": {body: labelled("panic"), code: 500,
			message: "the workload identity webhook failed; its log says why", notMessage: "a bug", log: "panic: a bug", counted: decisionFailed},
		"a bad annotation is explained": {body: labelled("bad-sa"), code: 400,
			message: "token expiration 1 not valid. Expected value to be between 3600 and 86400", log: "pod denied", counted: decisionDenied},
		"a pod of wrong form is refused": {body: createPod(`{"spec":[]}`), code: 400, message: "spec is not an object", log: "pod denied", counted: decisionDenied},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			status, text := f.post(t, "application/json; charset=utf-8", tc.query, tc.body)
			var review admissionv1.AdmissionReview
			if err := json.Unmarshal([]byte(text), &review); err != nil || status != http.StatusOK {
				t.Fatalf("%d %s: %v", status, text, err)
			}
			got := review.Response
			if review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" || got == nil || got.UID != "u-1" {
				t.Fatalf("not an answer to this review: %s", text)
			}
			if got.Allowed != tc.allowed || (len(got.Patch) > 0) != tc.patched || (got.PatchType != nil) != tc.patched {
				t.Errorf("allowed %v, patch %s", got.Allowed, got.Patch)
			}
			if !tc.allowed && (got.Result == nil || got.Result.Code != tc.code || !strings.Contains(got.Result.Message, tc.message)) {
				t.Errorf("result %+v, want %d %q", got.Result, tc.code, tc.message)
			}
			if tc.notMessage != "" && strings.Contains(text, tc.notMessage) {
				t.Errorf("the answer tells %q: %s", tc.notMessage, text)
			}
			if !strings.Contains(f.log.String(), tc.log) {
				t.Errorf("the log lacks %q:\n%s", tc.log, &f.log)
			}
			f.counts(t, tc.counted)
		})
	}
}

// counts fails unless exactly one request was observed, as d.
func (f *fixture) counts(t *testing.T, d decision) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(f.metrics)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "azwi_mutation_request" {
			continue
		}
		for _, m := range family.GetMetric() {
			want := uint64(0)
			if m.GetLabel()[0].GetValue() == string(d) {
				want = 1
			}
			if got := m.GetHistogram().GetSampleCount(); got != want {
				t.Errorf("%s is counted %d times", m.GetLabel()[0].GetValue(), got)
			}
		}
	}
	if problems, err := testutil.GatherAndLint(registry, "lanyard_webhook_annotated_service_accounts", "lanyard_webhook_certificate_expiry_timestamp_seconds"); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func TestWhatIsNoReviewIsRefused(t *testing.T) {
	tests := map[string]struct {
		contentType, body, want string
		status                  int
	}{
		"another content type":  {"text/plain", "{}", "application/json", 415},
		"no JSON":               {"application/json", "{", "decoding the review", 400},
		"another kind":          {"application/json", `{"apiVersion":"v1","kind":"Pod"}`, "not an AdmissionReview", 400},
		"the version before v1": {"application/json", `{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{}}`, "admissionReviewVersions to [v1]", 400},
		"no request":            {"application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, "no request", 400},
		"an endless body":       {"application/json", `"` + strings.Repeat("x", maxReviewBytes) + `"`, "larger than", 413},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			status, text := f.post(t, tc.contentType, "", tc.body)
			if status != tc.status || !strings.Contains(text, tc.want) {
				t.Errorf("%d %s, want %d %q", status, text, tc.status, tc.want)
			}
			if !strings.Contains(f.log.String(), "request refused") {
				t.Errorf("not logged:\n%s", &f.log)
			}
			f.counts(t, decisionInvalid)
		})
	}
	f := newFixture(t)
	resp, err := http.Get(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", resp.StatusCode)
	}
}

func TestTheAnswerComesBeforeTheAPIServerGivesUp(t *testing.T) {
	for query, want := range map[string]time.Duration{
		"":             9 * time.Second,
		"?timeout=10s": 9 * time.Second,
		"?timeout=1s":  900 * time.Millisecond,
		"?timeout=-1s": 9 * time.Second,
		"?timeout=9h":  9 * time.Second,
		"?timeout=abc": 9 * time.Second,
	} {
		if got := budget(httptest.NewRequest(http.MethodPost, "/"+query, nil)); got != want {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
}

// The names of v1.6's metrics, and the denials that they do not show.
func TestRefusalsAreVisibleInTheMetrics(t *testing.T) {
	f := newFixture(t)
	for _, account := range []string{"pod-identity-sa", "nobody", "unreadable", "panic"} {
		f.post(t, "application/json", "", createPod(fmt.Sprintf(labelledPod, account)))
	}
	f.post(t, "text/plain", "", "")
	const want = `
# HELP controller_runtime_webhook_panics_total Requests that ended in a panic.
# TYPE controller_runtime_webhook_panics_total counter
controller_runtime_webhook_panics_total 1
# HELP controller_runtime_webhook_requests_in_flight Requests that are being answered.
# TYPE controller_runtime_webhook_requests_in_flight gauge
controller_runtime_webhook_requests_in_flight{webhook="/mutate-v1-pod"} 0
# HELP controller_runtime_webhook_requests_total Requests by HTTP status. A denial is an answer with 200.
# TYPE controller_runtime_webhook_requests_total counter
controller_runtime_webhook_requests_total{code="200",webhook="/mutate-v1-pod"} 4
controller_runtime_webhook_requests_total{code="415",webhook="/mutate-v1-pod"} 1
controller_runtime_webhook_requests_total{code="500",webhook="/mutate-v1-pod"} 0
# HELP lanyard_webhook_refused_pods_total Pods that were refused: denied is the user's to change, failed the cluster's or the webhook's.
# TYPE lanyard_webhook_refused_pods_total counter
lanyard_webhook_refused_pods_total{decision="denied",namespace="default"} 1
lanyard_webhook_refused_pods_total{decision="failed",namespace="default"} 2
`
	if err := testutil.CollectAndCompare(f.metrics, strings.NewReader(want), "controller_runtime_webhook_panics_total", "controller_runtime_webhook_requests_in_flight",
		"controller_runtime_webhook_requests_total", "lanyard_webhook_refused_pods_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(f.metrics, "controller_runtime_webhook_latency_seconds"); n != 1 {
		t.Errorf("%d latency histograms", n)
	}
}

// Reviews may come from anybody who reaches the port, with any namespace in them.
func TestStrangersCannotFillTheMetrics(t *testing.T) {
	f := newFixture(t)
	post := func(namespace string) {
		f.post(t, "application/json", "", strings.Replace(createPod(fmt.Sprintf(labelledPod, "nobody")), `"namespace":"default"`, `"namespace":"`+namespace+`"`, 1))
	}
	for i := range maxNamespaces + 20 {
		post(fmt.Sprintf("n%d", i))
	}
	post("no name of a namespace " + strings.Repeat("x", 1000))
	post("n1") // still its own
	if n := testutil.CollectAndCount(f.metrics, "lanyard_webhook_refused_pods_total"); n != maxNamespaces+1 {
		t.Errorf("%d series, want %d and the others", n, maxNamespaces)
	}
	for namespace, want := range map[string]float64{"n1": 2, otherNamespaces: 21} {
		if got := testutil.ToFloat64(f.metrics.denials.WithLabelValues(namespace, string(decisionDenied))); got != want {
			t.Errorf("%s has %v, want %v", namespace, got, want)
		}
	}
}

func TestABodyThatIsOnlyAnnouncedTakesNoMemory(t *testing.T) {
	got, err := read(strings.NewReader("{}"), maxReviewBytes)
	if err != nil || string(got) != "{}" || cap(got) > 2*usualReviewBytes {
		t.Errorf("%q with room for %d bytes, %v", got, cap(got), err)
	}
}
