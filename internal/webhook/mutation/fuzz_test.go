package mutation

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// FuzzMutate holds every pod that is admitted against three properties: the
// patch applies, the pod keeps every field that it had, and the result is
// stable.
func FuzzMutate(f *testing.F) {
	files, err := filepath.Glob("../testdata/cases/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		pod, err := yaml.YAMLToJSON(podOf(raw))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pod, strings.Contains(file, "legacy"), "11111111-2222-3333-4444-555555555555", "3600")
	}
	f.Add([]byte(`{"spec":{"containers":[{"name":"a","env":null,"volumeMounts":[{"name":["x"]}]}],"volumes":[{"name":{}}]}}`), true, "", "-1")
	f.Add([]byte(`{"metadata":{"annotations":{"lanyard.id/injected-identity":"{\"env\":{\"AZURE_CLIENT_ID\":{\"value\":\"a\",\"containers\":[\"c\"]}}}"}},"spec":{"containers":[{"name":"c","env":[{"name":"AZURE_CLIENT_ID","value":"a"}]},{"name":"c"}]}}`), false, "", "")
	f.Fuzz(func(t *testing.T, raw []byte, legacy bool, client, expiration string) {
		if !utf8.Valid(raw) || !json.Valid(raw) || duplicateMember(raw) {
			return
		}
		pod, err := ParsePod(raw)
		if err != nil {
			return
		}
		cfg := testConfig
		if legacy {
			cfg.Layout = LayoutLegacy
			cfg.NativeSidecars = true
			cfg.Endpoint = TokenEndpoint{Suffix: "identity-binding", Audience: "api://x", Proxy: "https://x", CAConfigMap: "ca"}
		}
		sa := ServiceAccount{Annotations: map[string]string{
			"azure.workload.identity/client-id":                        client,
			"azure.workload.identity/service-account-token-expiration": expiration,
		}}
		res, err := Mutate(pod, sa, cfg)
		if err != nil {
			if len(res.Patch) > 0 || err.Error() == "" {
				t.Fatalf("a denial with a patch or without a message: %v", err)
			}
			return
		}
		if !utf8.ValidString(client) {
			return // cannot be in an object of the API server
		}
		mutated := apply(t, raw, res.Patch)
		if len(readRecord(pod).Env) == 0 { // or what the record names is replaced
			before, after := tree(t, raw), tree(t, mutated)
			kept(t, "", before, withoutProxy(pod, after), VolumeName(pod, cfg.of(pod)))
		}
		again, err := ParsePod(mutated)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := Mutate(again, sa, cfg); err != nil || len(second.Patch) > 0 {
			t.Fatalf("not stable: %v %v\n%s", second.Patch, err, mutated)
		}
	})
}

// podOf is the pod of a case.
func podOf(archive []byte) []byte {
	for _, f := range txtar.Parse(archive).Files {
		if f.Name == "pod.yaml" {
			return f.Data
		}
	}
	return nil
}

// withoutProxy takes the containers away that the proxy has put before others.
func withoutProxy(pod Pod, root any) any {
	spec, _ := root.(map[string]any)["spec"].(map[string]any)
	for member, before := range map[string]list{"initContainers": pod.inits, "containers": pod.mains} {
		if all, ok := spec[member].([]any); ok && before.present {
			spec[member] = all[len(all)-len(before.items):]
		}
	}
	return root
}

func tree(t testing.TB, raw []byte) any {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// kept fails if after lacks anything that before has, except in objects that
// bear the webhook's own volume name and in its own annotation.
func kept(t testing.TB, at string, before, after any, reserved string) {
	t.Helper()
	switch b := before.(type) {
	case nil: // null is an absent member: a list may take its place
	case map[string]any:
		if b["name"] == reserved {
			return
		}
		a, ok := after.(map[string]any)
		if !ok {
			t.Fatalf("%s was an object and is %v", at, after)
		}
		for k, v := range b {
			if k == workloadidentity.AnnotationInjected {
				continue
			}
			if _, ok := a[k]; !ok {
				t.Fatalf("%s/%s is gone", at, k)
			}
			kept(t, at+"/"+k, v, a[k], reserved)
		}
	case []any:
		a, ok := after.([]any)
		if !ok || len(a) < len(b) {
			t.Fatalf("%s was %v and is %v", at, before, after)
		}
		for i := range b {
			kept(t, at+"/"+strconv.Itoa(i), b[i], a[i], reserved)
		}
	default:
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("%s has changed\n%s", at, diff)
		}
	}
}

// duplicateMember reports whether an object has a member twice. The API server
// never sends one, and what the second means is not defined.
func duplicateMember(raw []byte) bool {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var walk func() bool
	walk = func() bool {
		tok, err := dec.Token()
		if err != nil {
			return false
		}
		switch tok {
		case json.Delim('{'):
			seen := map[string]bool{}
			for dec.More() {
				key, err := dec.Token()
				if err != nil {
					return false
				}
				name := key.(string)
				if seen[name] {
					return true
				}
				seen[name] = true
				if walk() {
					return true
				}
			}
			_, _ = dec.Token()
		case json.Delim('['):
			for dec.More() {
				if walk() {
					return true
				}
			}
			_, _ = dec.Token()
		}
		return false
	}
	return walk()
}

func BenchmarkMutate(b *testing.B) {
	raw, err := os.ReadFile("../testdata/cases/future-fields.txtar")
	if err != nil {
		b.Fatal(err)
	}
	pod, err := yaml.YAMLToJSON(podOf(raw))
	if err != nil {
		b.Fatal(err)
	}
	sa := ServiceAccount{Annotations: map[string]string{"azure.workload.identity/client-id": "11111111-2222-3333-4444-555555555555"}}
	b.ReportAllocs()
	for b.Loop() {
		p, err := ParsePod(pod)
		if err != nil {
			b.Fatal(err)
		}
		res, err := Mutate(p, sa, testConfig)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := json.Marshal(res.Patch); err != nil {
			b.Fatal(err)
		}
	}
}
