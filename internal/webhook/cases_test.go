package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

var update = flag.Bool("update", false, "write the results into testdata")

var testConfig = mutation.Config{
	TenantID:       "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
	AuthorityHost:  "https://login.microsoftonline.com/",
	Proxy:          mutation.Proxy{Image: "lanyard/proxy:dev", InitImage: "lanyard/proxy-init:dev", LogLevel: "info"},
	NativeSidecars: true,
}

// A reviewCase is one archive of testdata/cases: what the API server sends,
// and what it gets. The archive's comment says in a sentence what it shows.
//
//	rules                       names of rules, one a line
//	pod.yaml                    the pod, or review.yaml for another request
//	serviceaccount.yaml         its service account; without it there is none
//	config.yaml                 what differs from testConfig
//	first-serviceaccount.yaml   the account of a pass before, and
//	between.yaml                the JSON patch of another webhook after it
//	offline                     why a real API server cannot be asked
//	deviation                   why the answer is not that of v1.6
//	mutated.yaml, unchanged, denial, warnings: the answer
type reviewCase struct {
	name, file     string
	archive        *txtar.Archive
	files          map[string]string
	config         mutation.Config
	account, first *mutation.ServiceAccount
}

var answers = []string{"mutated.yaml", "unchanged", "denial", "warnings"}

func readCases(t testing.TB) []reviewCase {
	t.Helper()
	paths, err := filepath.Glob("testdata/cases/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var cases []reviewCase
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		c := reviewCase{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), file: path, archive: archive, files: map[string]string{}, config: testConfig}
		for _, f := range archive.Files {
			c.files[f.Name] = string(f.Data)
		}
		if err := yaml.Unmarshal([]byte(c.files["config.yaml"]), &c.config); err != nil {
			t.Fatalf("%s: config.yaml: %v", path, err)
		}
		c.account, c.first = c.readAccount(t, "serviceaccount.yaml"), c.readAccount(t, "first-serviceaccount.yaml")
		cases = append(cases, c)
	}
	return cases
}

func (c reviewCase) readAccount(t testing.TB, file string) *mutation.ServiceAccount {
	t.Helper()
	if c.files[file] == "" {
		return nil
	}
	var o struct{ Metadata mutation.ServiceAccount }
	if err := yaml.Unmarshal([]byte(c.files[file]), &o); err != nil {
		t.Fatalf("%s: %s: %v", c.file, file, err)
	}
	return &o.Metadata
}

// ServiceAccount makes the case a cluster with its service account.
func (c reviewCase) ServiceAccount(_ context.Context, namespace, name string) (mutation.ServiceAccount, error) {
	switch {
	case name == "unreadable":
		return mutation.ServiceAccount{}, errors.New("dial tcp 10.0.0.1:443: connection refused")
	case c.account == nil || c.account.Namespace != namespace || c.account.Name != name:
		return mutation.ServiceAccount{}, fmt.Errorf("%w: %s/%s", ErrNotFound, namespace, name)
	}
	return pack(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Labels: c.account.Labels, Annotations: c.account.Annotations}}).unpack(), nil
}

// pod is the pod that is sent, as JSON.
func (c reviewCase) pod(t testing.TB) []byte {
	t.Helper()
	pod, err := yaml.YAMLToJSON([]byte(c.files["pod.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	if c.first == nil {
		return pod
	}
	before := c
	before.account, before.first = c.first, nil
	answer := before.ask(t, pod)
	if !answer.Allowed {
		t.Fatalf("the first pass is refused: %s", answer.Result.Message)
	}
	between, err := yaml.YAMLToJSON([]byte(c.files["between.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	return applyPatch(t, applyPatch(t, pod, answer.Patch), between)
}

// ask sends a review of the pod, or the case's own, to a handler over HTTP.
func (c reviewCase) ask(t testing.TB, pod []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	server := httptest.NewServer(&Handler{
		ServiceAccounts: c, Config: c.config, NativeSidecars: func() bool { return c.config.NativeSidecars },
		Logger: slog.New(slog.DiscardHandler),
	})
	defer server.Close()
	body, err := yaml.YAMLToJSON([]byte(c.files["review.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	if c.files["review.yaml"] == "" {
		body, err = json.Marshal(admissionv1.AdmissionReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
			Request: &admissionv1.AdmissionRequest{
				UID: "u-1", Operation: "CREATE", Namespace: "default", Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
				Object: runtime.RawExtension{Raw: pod},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	resp, err := http.Post(server.URL+"/mutate-v1-pod?timeout=10s", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(resp.Body).Decode(&review); err != nil || review.Response == nil || review.Response.UID != "u-1" {
		t.Fatalf("%s is no answer: %v", resp.Status, err)
	}
	return review.Response
}

// answer is what the archive has to say.
func (c reviewCase) answer(t testing.TB) map[string]string {
	t.Helper()
	pod := c.pod(t)
	got := c.ask(t, pod)
	out := map[string]string{}
	if len(got.Warnings) > 0 {
		out["warnings"] = strings.Join(got.Warnings, "\n") + "\n"
	}
	switch {
	case !got.Allowed:
		out["denial"] = fmt.Sprintf("%d %s\n", got.Result.Code, got.Result.Message)
	case got.Patch == nil:
		out["unchanged"] = "allowed\n"
	default:
		mutated := applyPatch(t, pod, got.Patch)
		if again := c.ask(t, mutated); !again.Allowed || again.Patch != nil {
			t.Errorf("the mutated pod is mutated again: %s", again.Patch)
		}
		text, err := yaml.JSONToYAML(mutated)
		if err != nil {
			t.Fatal(err)
		}
		out["mutated.yaml"] = string(text)
	}
	return out
}

func applyPatch(t testing.TB, pod, raw []byte) []byte {
	t.Helper()
	patch, err := jsonpatch.DecodePatch(raw)
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	out, err := patch.Apply(pod)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, raw, pod)
	}
	return out
}

func TestReviews(t *testing.T) {
	for _, c := range readCases(t) {
		t.Run(c.name, func(t *testing.T) {
			got, want := c.answer(t), map[string]string{}
			for _, name := range answers {
				if text, ok := c.files[name]; ok {
					want[name] = text
				}
			}
			if diff := cmp.Diff(want, got); diff != "" && !*update {
				t.Errorf("%s(-want +got; -update accepts)\n%s", c.archive.Comment, diff)
			}
			if !*update {
				return
			}
			c.archive.Files = slices.DeleteFunc(c.archive.Files, func(f txtar.File) bool { return slices.Contains(answers, f.Name) })
			for _, name := range answers {
				if got[name] != "" {
					c.archive.Files = append(c.archive.Files, txtar.File{Name: name, Data: []byte(got[name])})
				}
			}
			if err := os.WriteFile(c.file, txtar.Format(c.archive), 0o644); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestEveryRuleHasACase(t *testing.T) {
	shown := map[string]bool{}
	for _, c := range readCases(t) {
		if len(strings.Fields(c.files["rules"])) == 0 || len(c.archive.Comment) == 0 {
			t.Errorf("%s names no rule, or has no comment that says what it shows", c.file)
		}
		for _, rule := range strings.Fields(c.files["rules"]) {
			if rules[rule] == "" {
				t.Errorf("%s: there is no rule %q", c.file, rule)
			}
			shown[rule] = true
		}
	}
	for rule, text := range rules {
		if !shown[rule] {
			t.Errorf("no case shows %q: %s", rule, text)
		}
	}
}

// Where we answer differently from v1.6 on purpose, the list says so: the
// documentation quotes it.
func TestDeviationsAreListed(t *testing.T) {
	reasons := map[string][]string{}
	for _, c := range readCases(t) {
		for _, reason := range strings.Split(strings.TrimSpace(c.files["deviation"]), "\n") {
			if reason != "" {
				reasons[reason] = append(reasons[reason], c.name)
			}
		}
	}
	var list strings.Builder
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		fmt.Fprintf(&list, "%s\n    %s\n", reason, strings.Join(reasons[reason], " "))
	}
	const file = "testdata/deviations.golden"
	if *update {
		if err := os.WriteFile(file, []byte(list.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), list.String()); diff != "" {
		t.Errorf("(-want +got; -update accepts)\n%s", diff)
	}
}
