package migrate

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	syaml "sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

var update = flag.Bool("update", false, "write the plans into testdata")

// settings is the file options.yaml of a case: Options, and what Azure and the
// audit tell.
type settings struct {
	Options  Options          `json:"options"`
	Azure    map[string]Facts `json:"azure"`
	Requests []Request        `json:"requests"`
	Proven   map[string]bool  `json:"proven"`
}

// read makes a World of objects.yaml.
func read(t *testing.T, objects, options []byte) (World, Options) {
	t.Helper()
	var s settings
	if err := syaml.UnmarshalStrict(options, &s); err != nil {
		t.Fatal(err)
	}
	if s.Options.Issuer == "" {
		s.Options.Issuer = "https://issuer.example/"
	}
	w := World{Azure: s.Azure, Requests: s.Requests, Proven: s.Proven}
	for _, doc := range strings.Split(string(objects), "\n---\n") {
		raw, err := syaml.YAMLToJSON([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		o := &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(raw); err != nil {
			t.Fatalf("%v: %s", err, doc)
		}
		typed := func(into any) {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into); err != nil {
				t.Fatal(err)
			}
		}
		switch o.GetKind() {
		case "AzureIdentity":
			id := &v1.AzureIdentity{}
			typed(id)
			w.Identities = append(w.Identities, id)
		case "AzureIdentityBinding":
			b := &v1.AzureIdentityBinding{}
			typed(b)
			w.Bindings = append(w.Bindings, b)
		case "AzurePodIdentityException":
			e := &v1.AzurePodIdentityException{}
			typed(e)
			w.Exceptions = append(w.Exceptions, e)
		case KindServiceAccount:
			w.Accounts = append(w.Accounts, o)
		case KindRoleBinding, KindClusterRoleBinding:
			w.Roles = append(w.Roles, o)
		default:
			w.Workloads = append(w.Workloads, o)
		}
	}
	return w, s.Options
}

func TestPlans(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) < 10 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parts := map[string][]byte{}
			for _, f := range a.Files {
				parts[f.Name] = f.Data
			}
			w, o := read(t, parts["objects.yaml"], parts["options.yaml"])
			before, _ := json.Marshal(w)
			p := Make(w, o)
			if after, _ := json.Marshal(w); !bytes.Equal(before, after) {
				t.Error("planning changed the world")
			}
			for i, f := range a.Files {
				var got bytes.Buffer
				switch f.Name {
				case "plan":
					err = p.WriteText(&got)
				case "yaml":
					err = p.WriteYAML(&got)
				case "json":
					err = p.WriteJSON(&got)
				default:
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if *update {
					a.Files[i].Data = got.Bytes()
				} else if diff := cmp.Diff(string(f.Data), got.String()); diff != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, diff)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(a), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			checkOrder(t, w, o, p)
		})
	}
}

// checkOrder asserts that a plan does not depend on the order of what is read.
func checkOrder(t *testing.T, w World, o Options, p Plan) {
	t.Helper()
	turn := w
	turn.Workloads = reversed(w.Workloads)
	turn.Accounts = reversed(w.Accounts)
	turn.Bindings = reversed(w.Bindings)
	turn.Identities = reversed(w.Identities)
	turn.Requests = reversed(w.Requests)
	var a, b bytes.Buffer
	if err := p.WriteJSON(&a); err != nil {
		t.Fatal(err)
	}
	if err := Make(turn, o).WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(a.String(), b.String()); diff != "" {
		t.Errorf("the order of the input changes the plan:\n%s", diff)
	}
}

func reversed[T any](s []T) []T {
	var out []T
	for i := len(s) - 1; i >= 0; i-- {
		out = append(out, s[i])
	}
	return out
}

func TestUserAgentsThatKnowWorkloadIdentity(t *testing.T) {
	for agent, want := range map[string]bool{
		"azsdk-go-azidentity/v1.3.0 (go1.22; linux)":           true,
		"azsdk-go-azidentity/v1.15.0 (go1.26; linux)":          true,
		"myapp azsdk-go-azidentity/v1.2.9":                     false,
		"azsdk-net-Identity/1.9.0 (.NET 8.0)":                  true,
		"azsdk-net-Identity/1.8.2":                             false,
		"azsdk-python-identity/1.13.0 Python/3.11":             true,
		"azsdk-python-identity/1.12.0":                         false,
		"azsdk-js-identity/3.2.0":                              true,
		"azsdk-js-identity/3.1.9":                              false,
		"azsdk-java-azure-identity/1.9.0":                      true,
		"azsdk-java-azure-identity/2.0.0":                      true,
		"curl/8.5.0":                                           false,
		"Go/go1.12 (amd64-linux) go-autorest/v14.2.1":          false,
		"xazsdk-go-azidentity/v1.3.0":                          false,
		"azsdk-go-azidentity/v99999999999999999999999999999.0": false,
		"": false,
	} {
		if got := knowsWorkloadIdentity(agent); got != want {
			t.Errorf("%q: %v", agent, got)
		}
	}
}

func TestReadAudit(t *testing.T) {
	long := strings.Repeat("x", 2*maxLine)
	log := `{"msg":"audit","namespace":"a","pod":"p","uid":"u","userAgent":"curl/8"}
not JSON
` + long + `
{"msg":"audit","namespace":"a","pod":"p","uid":"u","userAgent":"curl/8"}
{"msg":"something else","namespace":"a","pod":"q","userAgent":"curl/8"}
{"msg":"audit","namespace":"a","pod":"r","caller":"csi/driver","userAgent":"curl/8"}
{"msg":"audit","namespace":"a","pod":"o","decision":"refused","identity":"a/i"}
{"msg":"audit","namespace":"a","pod":"q","decision":"issued","identity":"a/i"}`
	got, err := ReadAudit(strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Request{{"a", "o", "", "", ""}, {"a", "p", "u", "curl/8", ""}, {"a", "q", "", "", "a/i"}}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := ReadAudit(iotestError{}); err == nil {
		t.Error("a failing reader is no error")
	}
}

type iotestError struct{}

func (iotestError) Read([]byte) (int, error) { return 0, fmt.Errorf("the disk is gone") }

func TestParseWorkload(t *testing.T) {
	for text, want := range map[string]string{
		"deployment/api": "Deployment shop/api", "deploy/api": "Deployment shop/api", "deployments.apps/api": "Deployment shop/api",
		"StatefulSet/db": "StatefulSet shop/db", "ds/agent": "DaemonSet shop/agent", "cj/night": "CronJob shop/night", "jobs/once": "Job shop/once", "po/x": "Pod shop/x",
		"api": "", "/api": "", "deployment/": "", "deployment/a/b": "", "secret/x": "",
	} {
		got, err := ParseWorkload(text, "shop")
		if want == "" && err == nil || want != "" && (err != nil || got.String() != want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// A field that nobody knows today stays where it is.
func TestUnknownFieldsSurvive(t *testing.T) {
	for _, k := range Kinds() {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": k.Resource.GroupVersion().String(), "kind": k.Kind, "metadata": map[string]any{"name": "x"}}}
		pod := map[string]any{"metadata": map[string]any{"future": "a"}, "spec": map[string]any{"future": []any{map[string]any{"b": int64(1)}}}}
		if k.template == nil {
			o.Object["metadata"], o.Object["spec"] = map[string]any{"name": "x", "future": "a"}, pod["spec"]
		} else if err := unstructured.SetNestedMap(o.Object, pod, k.template...); err != nil {
			t.Fatal(err)
		}
		before := o.DeepCopy()
		tmpl, ok := TemplateOf(o)
		if !ok {
			t.Fatalf("%s has no template", k.Kind)
		}
		tmpl.SetLabel("l", "v")
		tmpl.SetAnnotation("n", "v")
		tmpl.SetServiceAccount("s")
		if got := tmpl.ServiceAccount(); got != "s" || tmpl.Labels()["l"] != "v" || tmpl.Annotations()["n"] != "v" {
			t.Errorf("%s: %v", k.Kind, o.Object)
		}
		patch, err := json.Marshal(mergePatch(before, o))
		if err != nil || strings.Contains(string(patch), "future") {
			t.Errorf("%s: %s, %v", k.Kind, patch, err)
		}
	}
}

// The federation controller marks an object some time after migration made it:
// that is no edit, and a finalizer of somebody else is one.
func TestTheControllersMarkIsNoEdit(t *testing.T) {
	made := NewCredential{Namespace: "shop", ServiceAccount: "web"}.FederatedIdentity()
	marked := made.DeepCopy()
	marked.SetFinalizers([]string{"lanyard.id/federated-credential"})
	if diff := cmp.Diff(Canonical(made).Object, Canonical(marked).Object); diff != "" {
		t.Errorf("the mark counts as an edit (-made +marked):\n%s", diff)
	}
	marked.SetFinalizers([]string{"lanyard.id/federated-credential", "example.com/keep"})
	if got := Canonical(marked).GetFinalizers(); !cmp.Equal(got, []string{"example.com/keep"}) {
		t.Errorf("finalizers %v, want only somebody else's", got)
	}
}
