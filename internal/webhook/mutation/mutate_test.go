package mutation

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/google/go-cmp/cmp"
)

var testConfig = Config{
	TenantID:      "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
	AuthorityHost: "https://login.microsoftonline.com/",
	Proxy:         Proxy{Image: "lanyard/proxy:dev", InitImage: "lanyard/proxy-init:dev", LogLevel: "info"},
}

func apply(t testing.TB, pod []byte, ops []Operation) []byte {
	t.Helper()
	raw, err := json.Marshal(ops)
	if err != nil {
		t.Fatal(err)
	}
	if len(ops) == 0 {
		return pod
	}
	patch, err := jsonpatch.DecodePatch(raw)
	if err != nil {
		t.Fatal(err)
	}
	out, err := patch.Apply(pod)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, raw, pod)
	}
	return out
}

func TestPatchBytesAreTheContract(t *testing.T) {
	pod, err := ParsePod([]byte(`{"metadata":{"name":"app"},"spec":{"containers":[{"name":"main"}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	res, err := Mutate(pod, ServiceAccount{Namespace: "default", Name: "default", Annotations: map[string]string{"azure.workload.identity/client-id": "11111111-2222-3333-4444-555555555555"}}, testConfig)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(res.Patch, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/patch.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(bytes.TrimSpace(want)), string(got)); diff != "" {
		t.Error(diff)
	}
}

func TestAPodOfWrongFormIsRefused(t *testing.T) {
	tests := map[string]struct{ pod, want string }{
		"not JSON":                      {`{`, "unexpected EOF"},
		"two objects":                   {`{"spec":{}} {}`, "data after the value"},
		"a list":                        {`[]`, "not an object"},
		"no spec":                       {`{}`, "spec is not an object"},
		"a label that is a number":      {`{"metadata":{"labels":{"a":1}},"spec":{}}`, `metadata.labels["a"] is not a string`},
		"containers that are an object": {`{"spec":{"containers":{}}}`, "/spec/containers is not a list"},
		"a container that is null":      {`{"spec":{"containers":[null]}}`, "/spec/containers/0 is not an object"},
		"an env that is a string":       {`{"spec":{"containers":[{"env":"A=b"}]}}`, "/spec/containers/0/env is not a list"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := ParsePod([]byte(tc.pod)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestMemberNamesAreCaseSensitive(t *testing.T) {
	pod, err := ParsePod([]byte(`{"Metadata":{"labels":{"azure.workload.identity/use":"true"}},"spec":{"ServiceAccountName":"x"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if pod.Labelled() || pod.ServiceAccount != "default" {
		t.Errorf("a member of another case was read: %+v", pod)
	}
}

func TestOnlyTheLabelTrueAsks(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "false": false, "True": false, "": false} {
		pod := Pod{Labels: map[string]string{"azure.workload.identity/use": value}}
		if pod.Labelled() != want {
			t.Errorf("label %q: asks = %v", value, pod.Labelled())
		}
	}
}

func TestWarningsFitIntoWhatTheAPIServerPassesOn(t *testing.T) {
	pod := Pod{Annotations: map[string]string{}, containers: []container{{name: "main"}}}
	for i := range 100 {
		pod.Annotations["azure.workload.identity/"+strings.Repeat("x", i+200)] = "y"
	}
	sa := ServiceAccount{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 253), Annotations: map[string]string{"azure.workload.identity/client-id": strings.Repeat("ü", 9999)}}
	res, err := Mutate(pod, sa, testConfig)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Warnings) == 0 || len(res.Warnings) > 16 {
		t.Errorf("%d warnings", len(res.Warnings))
	}
	for _, w := range res.Warnings {
		if len(w) > 256 {
			t.Errorf("a warning of %d bytes: %s", len(w), w)
		}
	}
}

func TestConfigSaysWhatToChange(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		want   string
	}{
		"complete":                 {func(*Config) {}, ""},
		"no tenant":                {func(c *Config) { c.TenantID = "" }, "set AZURE_TENANT_ID"},
		"an unfilled placeholder":  {func(c *Config) { c.TenantID = "${AZURE_TENANT_ID}" }, "replace the placeholder"},
		"an authority without TLS": {func(c *Config) { c.AuthorityHost = "http://login" }, "not an https URL"},
		"an unknown layout":        {func(c *Config) { c.Layout = "v2" }, `use "v1.6" or "legacy"`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			c := testConfig
			tc.change(&c)
			err := c.Validate()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestAuthorityHostOfEveryEnvironment(t *testing.T) {
	for env, want := range map[string]string{
		"":                       "https://login.microsoftonline.com/",
		"AzurePublicCloud":       "https://login.microsoftonline.com/",
		"azureusgovernmentcloud": "https://login.microsoftonline.us/",
		"AzureChinaCloud":        "https://login.chinacloudapi.cn/",
		"AzureGermanCloud":       "https://login.microsoftonline.de/",
	} {
		if got, err := AuthorityHost(env); got != want || err != nil {
			t.Errorf("%q: %q, %v", env, got, err)
		}
	}
	if _, err := AuthorityHost("AzureStack"); err == nil || !strings.Contains(err.Error(), "--authority-host") {
		t.Errorf("AzureStack: error %v does not name the way out", err)
	}
}

// A patch that touches a list must not make the API server see another number
// or string than the user wrote.
func TestUnknownFieldsSurviveByteForByte(t *testing.T) {
	unknown := []string{
		`"futureOfRoot":1e400`, `"futureOfMetadata":{"a":-0.0}`, `"futureOfSpec":[1.10,"\u0041\ud800"]`, `"futureOfInit":12345678901234567890123`,
		`"futureOfContainer":{"deep":[[[{}]]]}`, `"futureOfEnv":{"fileKeyRef":null}`, `"futureOfMount":0.1000`, `"futureOfVolume":{"podCertificate":{"x":"\/"}}`, `"futureOfEphemeral":2E-7`,
	}
	raw := fmt.Appendf(nil, `{%s,"metadata":{%s,"name":"app","annotations":{"azure.workload.identity/inject-proxy-sidecar":"true"}},"spec":{%s,"initContainers":[{"name":"i",%s}],"containers":[{"name":"c",%s,"env":[{"name":"E",%s}],"volumeMounts":[{"name":"v","mountPath":"/v",%s}]}],"volumes":[{"name":"v",%s}],"ephemeralContainers":[{"name":"e",%s}]}}`,
		unknown[0], unknown[1], unknown[2], unknown[3], unknown[4], unknown[5], unknown[6], unknown[7], unknown[8])
	pod, err := ParsePod(raw)
	if err != nil {
		t.Fatal(err)
	}
	res, err := Mutate(pod, ServiceAccount{}, testConfig)
	if err != nil {
		t.Fatal(err)
	}
	mutated := apply(t, raw, res.Patch)
	for _, field := range unknown {
		if !bytes.Contains(mutated, []byte(field)) {
			t.Errorf("%s is not in %s", field, mutated)
		}
	}
}
