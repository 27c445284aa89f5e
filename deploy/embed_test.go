package deploy

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestFillReplacesPlaceholdersAndNothingElse(t *testing.T) {
	tests := map[string]struct {
		manifest, want, wantErr string
	}{
		"a placeholder becomes a quoted string": {manifest: "a: ${TENANT}\n", want: "a: 'it''s one'\n"},
		"a comment keeps its placeholder":       {manifest: "# set ${OTHER}\na: 1\n", want: "# set ${OTHER}\na: 1\n"},
		"a dollar alone is no placeholder":      {manifest: "a: $TENANT $(TENANT)\n", want: "a: $TENANT $(TENANT)\n"},
		"a value replaces a default":            {manifest: "a: ${TENANT:-none}\n", want: "a: 'it''s one'\n"},
		"a default stands in for no value":      {manifest: "a: ${OTHER:-Azure Public}\n", want: "a: 'Azure Public'\n"},
		"an empty value is none":                {manifest: "a: ${EMPTY:-x}\n", want: "a: 'x'\n"},
		"a default may be empty":                {manifest: "a: ${OTHER:-}\n", want: "a: ''\n"},
		"a placeholder without value is named":  {manifest: "a: ${OTHER}\n", wantErr: "no value for OTHER"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Fill([]byte(tc.manifest), map[string]string{"TENANT": "it's one", "EMPTY": ""})
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error %v, want %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFillCannotBreakOutOfTheValue(t *testing.T) {
	got, err := Fill([]byte("data:\n  T: ${T}\n"), map[string]string{"T": "x'\nevil: true"})
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(got, &doc); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"data": map[string]any{"T": "x' evil: true"}}
	if diff := cmp.Diff(want, doc); diff != "" {
		t.Error(diff)
	}
}

func TestEveryEmbeddedDocumentIsAnObject(t *testing.T) {
	err := fs.WalkDir(FS, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := fs.ReadFile(FS, path)
		if err != nil {
			return err
		}
		for i, doc := range strings.Split(string(raw), "\n---\n") {
			var o struct {
				APIVersion, Kind string
				Metadata         struct{ Name string }
			}
			if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
				t.Errorf("%s, document %d: %v", path, i, err)
			} else if o.APIVersion == "" || o.Kind == "" || o.Metadata.Name == "" {
				t.Errorf("%s, document %d: apiVersion, kind or name is missing", path, i)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnUnknownManifestNamesTheOnesThatExist(t *testing.T) {
	_, err := Manifests("webhok")
	if err == nil || !strings.Contains(err.Error(), "webhook") {
		t.Errorf("error %v, want one that lists webhook", err)
	}
	docs, err := Manifests("webhook")
	if err != nil || len(docs) != 1 || !strings.Contains(string(docs[0]), "MutatingWebhookConfiguration") {
		t.Errorf("Manifests(webhook) = %d documents, %v", len(docs), err)
	}
}

func TestEveryCRDIsOfOnePart(t *testing.T) {
	all, err := CRDs()
	if err != nil {
		t.Fatal(err)
	}
	podIdentity, err := CRDs(PodIdentity)
	if err != nil {
		t.Fatal(err)
	}
	federation, err := CRDs(Federation)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(podIdentity)+len(federation) || len(federation) != 2 {
		t.Errorf("%d CRDs, of them %d of Pod Identity and %d of the federation", len(all), len(podIdentity), len(federation))
	}
	for _, doc := range federation {
		if !strings.Contains(string(doc), "group: lanyard.id") {
			t.Errorf("a CRD of another group: %.200s", doc)
		}
	}
}

func TestTheCRDsAreEmbedded(t *testing.T) {
	docs, err := CRDs()
	if err != nil || len(docs) < 4 {
		t.Fatalf("%d CRDs, %v", len(docs), err)
	}
	for _, doc := range docs {
		if !strings.Contains(string(doc), "kind: CustomResourceDefinition") {
			t.Errorf("no CRD: %.200s", doc)
		}
	}
}
