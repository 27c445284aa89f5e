package v1_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

func decode(t *testing.T, text string) map[string]any {
	t.Helper()
	js, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	obj := map[string]any{}
	if err := json.Unmarshal(js, &obj); err != nil {
		t.Fatal(err)
	}
	return whole(obj).(map[string]any)
}

// whole turns whole numbers into int64, as the API machinery decodes them.
func whole(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = whole(v[k])
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	}
	return v
}

func TestNormalize(t *testing.T) {
	for _, c := range []struct {
		name, kind, in, want string
		conflicts            []v1.Conflict
	}{
		{
			"an identity as the first release wrote it", v1.KindAzureIdentity,
			`spec: {type: 0, ResourceID: /subscriptions/s, ClientID: c}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"clientID":"c","resourceID":"/subscriptions/s"}'}}, spec: {type: 0, resourceID: /subscriptions/s, clientID: c}}`, nil,
		},
		{
			"an identity in lower case", v1.KindAzureIdentity,
			`spec: {type: 0, resourceid: r, clientid: c}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"clientID":"c","resourceID":"r"}'}}, spec: {type: 0, resourceID: r, clientID: c}}`, nil,
		},
		{
			"a service principal with its Secret", v1.KindAzureIdentity,
			`spec: {type: 1, TenantID: t, ClientID: c, ClientPassword: {Name: pw, Namespace: ns}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"clientID":"c","clientPassword":{"name":"pw","namespace":"ns"},"tenantID":"t"}'}}, spec: {type: 1, tenantID: t, clientID: c, clientPassword: {name: pw, namespace: ns}}}`, nil,
		},
		{
			"only the inner names are old", v1.KindAzureIdentity,
			`spec: {type: 1, clientPassword: {Name: pw, namespace: ns}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"clientPassword.name":"pw"}'}}, spec: {type: 1, clientPassword: {name: pw, namespace: ns}}}`, nil,
		},
		{
			"a type in capitals", v1.KindAzureIdentity,
			`spec: {Type: 2}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"type":2}'}}, spec: {type: 2}}`, nil,
		},
		{
			"a binding", v1.KindAzureIdentityBinding,
			`{metadata: {name: b}, spec: {AzureIdentity: i, Selector: s, other: x}}`,
			`{metadata: {name: b, annotations: {aadpodidentity.k8s.io/normalized: '{"azureIdentity":"i","selector":"s"}'}}, spec: {azureIdentity: i, selector: s, other: x}}`, nil,
		},
		{
			"an exception", v1.KindAzurePodIdentityException,
			`spec: {PodLabels: {app: mic}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"podLabels":{"app":"mic"}}'}}, spec: {podLabels: {app: mic}}}`, nil,
		},
		{
			"both spellings agree", v1.KindAzureIdentityBinding,
			`spec: {Selector: s, selector: s}`, `spec: {selector: s}`, nil,
		},
		{
			"both spellings differ", v1.KindAzureIdentityBinding,
			`spec: {Selector: old, selector: new}`, `spec: {selector: new}`,
			[]v1.Conflict{{Kept: "selector", Dropped: "Selector"}},
		},
		{
			"two old spellings differ", v1.KindAzureIdentity,
			`spec: {ClientID: a, clientid: b}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"clientID":"a"}'}}, spec: {clientID: a}}`,
			[]v1.Conflict{{Kept: "ClientID", Dropped: "clientid"}},
		},
		{
			"an empty old value loses nothing", v1.KindAzureIdentityBinding,
			`spec: {Selector: "", selector: s}`, `spec: {selector: s}`, nil,
		},
		{
			"an empty new value gives way", v1.KindAzureIdentityBinding,
			`spec: {Selector: s, selector: ""}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"selector":"s"}'}}, spec: {selector: s}}`, nil,
		},
		{
			"the same old manifest applied again", v1.KindAzureIdentityBinding,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"selector":"s"}'}}, spec: {selector: s, Selector: s}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"selector":"s"}'}}, spec: {selector: s}}`, nil,
		},
		{
			"a changed old manifest applied again is obeyed", v1.KindAzureIdentityBinding,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"selector":"s"}'}}, spec: {selector: s, Selector: t}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"selector":"t"}'}}, spec: {selector: t}}`, nil,
		},
		{
			"a changed type applied again is obeyed", v1.KindAzureIdentity,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"type":2}'}}, spec: {type: 2, Type: 1}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"type":1}'}}, spec: {type: 1}}`, nil,
		},
		{
			"what somebody wrote in the new spelling outlives an old manifest", v1.KindAzureIdentityBinding,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"selector":"s"}'}}, spec: {selector: mine, Selector: s}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: '{"selector":"s"}'}}, spec: {selector: mine}}`,
			[]v1.Conflict{{Kept: "selector", Dropped: "Selector"}},
		},
		{
			"a record that cannot be read counts for nothing", v1.KindAzureIdentityBinding,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: 'null'}}, spec: {selector: s, Selector: t}}`,
			`{metadata: {annotations: {aadpodidentity.k8s.io/normalized: 'null'}}, spec: {selector: s}}`,
			[]v1.Conflict{{Kept: "selector", Dropped: "Selector"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := decode(t, c.in)
			copied := runtime.DeepCopyJSON(in)
			got, changed, conflicts := v1.Normalize(c.kind, in)
			if !changed {
				t.Error("nothing changed")
			}
			if diff := cmp.Diff(decode(t, c.want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(c.conflicts, conflicts); diff != "" {
				t.Errorf("conflicts (-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(copied, in); diff != "" {
				t.Errorf("the input was modified (-before +after)\n%s", diff)
			}
			if _, again, _ := v1.Normalize(c.kind, got); again {
				t.Error("normalizing again changes something")
			}
		})
	}
}

func TestNormalizeLeavesWhatIsNotItsBusiness(t *testing.T) {
	for _, c := range []struct{ name, kind, in string }{
		{"an object of today", v1.KindAzureIdentity, `spec: {type: 0, resourceID: r, clientID: c}`},
		{"an assignment", v1.KindAzureAssignedIdentity, `spec: {Pod: p}`},
		{"no spec", v1.KindAzureIdentity, `metadata: {name: x}`},
		{"a spec that is no object", v1.KindAzureIdentity, `spec: ResourceID`},
		{"another kind's old spelling", v1.KindAzureIdentityBinding, `spec: {ClientID: c}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := decode(t, c.in)
			got, changed, conflicts := v1.Normalize(c.kind, in)
			if changed || conflicts != nil {
				t.Errorf("changed %v, conflicts %v", changed, conflicts)
			}
			if diff := cmp.Diff(decode(t, c.in), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// Every old spelling that Normalize knows must be declared by the Go type, from
// which the schema is made: an undeclared one would be pruned unseen.
func TestEveryOldSpellingIsDeclared(t *testing.T) {
	specs := map[string]any{
		v1.KindAzureIdentity:             v1.AzureIdentitySpec{},
		v1.KindAzureIdentityBinding:      v1.AzureIdentityBindingSpec{},
		v1.KindAzurePodIdentityException: v1.AzurePodIdentityExceptionSpec{},
	}
	for kind, spec := range specs {
		declared := map[string]bool{}
		for _, f := range reflect.VisibleFields(reflect.TypeOf(spec)) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			declared[name] = true
		}
		known := map[string]bool{}
		for _, name := range v1.OldSpellings(kind) {
			known[name] = true
			if !declared[name] {
				t.Errorf("%s: %s is moved but not declared", kind, name)
			}
		}
		for _, f := range reflect.VisibleFields(reflect.TypeOf(spec)) {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if strings.HasPrefix(f.Name, "Old") && !f.Anonymous && !known[name] {
				t.Errorf("%s: %s is declared but never moved", kind, name)
			}
		}
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add(`{"spec":{"ResourceID":"a","resourceID":"b","ClientPassword":{"Name":"n"}}}`)
	f.Add(`{"metadata":{"annotations":{"aadpodidentity.k8s.io/normalized":"{\"resourceID\":1}"}},"spec":{"ResourceID":1,"resourceID":1}}`)
	f.Fuzz(func(t *testing.T, text string) {
		obj := map[string]any{}
		if json.Unmarshal([]byte(text), &obj) != nil || obj == nil {
			return
		}
		whole(obj)
		for _, kind := range []string{v1.KindAzureIdentity, v1.KindAzureIdentityBinding, v1.KindAzurePodIdentityException} {
			out, _, _ := v1.Normalize(kind, obj)
			if _, again, _ := v1.Normalize(kind, out); again {
				t.Fatalf("%s: normalizing %s twice changes something", kind, text)
			}
		}
	})
}
