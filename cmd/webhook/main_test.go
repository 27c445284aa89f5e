package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

func environment(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func TestTheFlagsOfV16AreUnderstood(t *testing.T) {
	var stderr bytes.Buffer
	s, err := parse([]string{
		"--audience=api://x", "-webhook-cert-dir", "/tls", "--disable-cert-rotation", "--tls-min-version=1.2",
		"--health-addr=:1", "--metrics-addr=:2", "--metrics-backend=prometheus", "--log-level=trace", "--kubeconfig=k",
	}, environment(map[string]string{"AZURE_TENANT_ID": "t", "AZURE_ENVIRONMENT": "AzureChinaCloud", "PROXY_IMAGE": "registry.example/proxy:1", "POD_NAMESPACE": "ns"}), &stderr)
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	want := mutation.Config{TenantID: "t", AuthorityHost: "https://login.chinacloudapi.cn/", Audience: "api://x", Layout: mutation.LayoutV16,
		Proxy: mutation.Proxy{Image: "registry.example/proxy:1", InitImage: "lanyard/proxy-init:dev", LogLevel: "trace"}}
	if diff := cmp.Diff(want, s.Config); diff != "" {
		t.Error(diff)
	}
	if s.certDir != "/tls" || !s.disableRotation || s.healthAddr != ":1" || s.metricsAddr != ":2" || s.level != slog.LevelDebug || s.kubeconfig != "k" || s.namespace != "ns" {
		t.Errorf("%+v", s)
	}
}

func TestTheDefaultsAreThoseOfV16(t *testing.T) {
	s, err := parse(nil, environment(map[string]string{"AZURE_TENANT_ID": "t"}), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{s.webhookAddr, s.healthAddr, s.metricsAddr, s.certDir, s.namespace, s.servedName, s.disableRotation, s.AuthorityHost, s.level, s.shutdownDelay}
	want := []any{":9443", ":9440", ":8095", "/certs", "azure-workload-identity-system",
		"azure-wi-webhook-webhook-service.azure-workload-identity-system.svc", false, "https://login.microsoftonline.com/", slog.LevelInfo, 5 * time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestBadSettingsAreExplained(t *testing.T) {
	tenant := map[string]string{"AZURE_TENANT_ID": "t"}
	endpoint := []string{"--custom-token-endpoint-annotation-suffix=identity-binding", "--custom-token-endpoint-audience=api://x"}
	for name, tc := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"no tenant":               {nil, nil, "set AZURE_TENANT_ID"},
		"an unfilled manifest":    {nil, map[string]string{"AZURE_TENANT_ID": "${AZURE_TENANT_ID}"}, "replace the placeholder"},
		"an unknown environment":  {nil, map[string]string{"AZURE_TENANT_ID": "t", "AZURE_ENVIRONMENT": "Mars"}, `AZURE_ENVIRONMENT "Mars" is unknown: use AzurePublicCloud`},
		"an unknown layout":       {[]string{"--token-layout=v2"}, tenant, `use "v1.6" or "legacy"`},
		"an unknown TLS version":  {[]string{"--tls-min-version=1.4"}, tenant, "use 1.2 or 1.3"},
		"resources that are none": {[]string{`--proxy-resources={"cpu":"1"}`}, tenant, `--proxy-resources: json: unknown field "cpu"`},
		"two resources":           {[]string{`--proxy-resources={"requests":{"cpu":"1"}} {}`}, tenant, "--proxy-resources: there is more than one value: write JSON such as"},
		"an address in brackets":  {[]string{"--serving-names=webhook.example,[::1]"}, tenant, `--serving-names: "[::1]" is neither a host name nor an address: write`},
		"a list with an end":      {[]string{"--serving-names=webhook.example,"}, tenant, `--serving-names: "" is neither`},
		"an endpoint without a suffix": {[]string{"--custom-token-endpoint-audience=api://x"}, tenant,
			"custom token endpoint annotation suffix cannot be empty when audience is set"},
		"an endpoint without an audience": {[]string{"--custom-token-endpoint-annotation-suffix=x"}, tenant,
			"custom token endpoint audience cannot be empty when annotation suffix is set"},
		"an endpoint with Entra's audience": {[]string{"--custom-token-endpoint-annotation-suffix=x", "--custom-token-endpoint-audience=api://AzureADTokenExchange"}, tenant,
			`custom token endpoint audience cannot be equal to default audience "api://AzureADTokenExchange"`},
		"a suffix that is no name": {[]string{"--custom-token-endpoint-annotation-suffix=a/b", "--custom-token-endpoint-audience=api://x"}, tenant,
			`custom token endpoint annotation key "azure.workload.identity/use-a/b" is not valid: `},
		"two CAs": {endpoint, map[string]string{"AZURE_TENANT_ID": "t", "AZURE_KUBERNETES_CA_DATA": "x", "AZURE_KUBERNETES_CA_CONFIGMAP_NAME": "y"}, "mutually exclusive: keep one"},
		"a selector without a signer": {endpoint, map[string]string{"AZURE_TENANT_ID": "t", "AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR": "{}"},
			"AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR needs AZURE_KUBERNETES_CA_CTB_SIGNER_NAME"},
		"a selector that is none": {endpoint, map[string]string{"AZURE_TENANT_ID": "t", "AZURE_KUBERNETES_CA_CTB_SIGNER_NAME": "x/y", "AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR": "app=x"},
			"write a label selector as JSON"},
		"an endpoint over HTTP": {endpoint, map[string]string{"AZURE_TENANT_ID": "t", "AZURE_KUBERNETES_TOKEN_PROXY": "http://proxy"}, "write an https URL"},
		"an unknown log level":  {[]string{"--log-level=loud"}, tenant, "use debug, info, warn or error"},
		"an unknown doctor":     {[]string{"--doctor=true"}, tenant, "use off, report or evict"},
		"a restless doctor":     {[]string{"--doctor=report", "--doctor-interval=1s"}, tenant, "at least 10s"},
		"stale but not evicted": {[]string{"--doctor=report", "--doctor-evict-stale"}, tenant, "needs --doctor=evict"},
		"another backend":       {[]string{"--metrics-backend=x"}, tenant, "use prometheus"},
		"an argument":           {[]string{"serve"}, tenant, `unexpected argument "serve"`},
		"an unknown flag":       {[]string{"--nope"}, tenant, "flag provided but not defined"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse(tc.args, environment(tc.env), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestVersionNeedsNoSettings(t *testing.T) {
	var stdout bytes.Buffer
	if err := run(t.Context(), []string{"--version"}, environment(nil), &stdout, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil || got["buildVersion"] != "devel" || got["goVersion"] == "" || got["platform"] == "" || got["gitCommit"] == "" || got["buildDate"] == "" {
		t.Errorf("%s: %v", &stdout, err)
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	var stderr bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, environment(nil), &bytes.Buffer{}, &stderr); !errors.Is(err, flag.ErrHelp) || !strings.Contains(stderr.String(), "-token-layout") {
		t.Errorf("%v\n%s", err, &stderr)
	}
}

func TestAPortInUseIsNamedByItsFlag(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	kubeconfig := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(kubeconfig, []byte(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	err = run(t.Context(), []string{"--kubeconfig", kubeconfig, "--webhook-addr=127.0.0.1:0", "--health-addr", l.Addr().String()},
		environment(map[string]string{"AZURE_TENANT_ID": "t"}), &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "listening on --health-addr "+l.Addr().String()) {
		t.Errorf("error %v", err)
	}
}

func TestTheCustomTokenEndpointIsRead(t *testing.T) {
	s, err := parse([]string{"--custom-token-endpoint-annotation-suffix=identity-binding", "--custom-token-endpoint-audience=api://x"}, environment(map[string]string{
		"AZURE_TENANT_ID": "t", "AZURE_KUBERNETES_TOKEN_PROXY": "https://proxy", "AZURE_KUBERNETES_SNI_NAME": "sni",
		"AZURE_KUBERNETES_CA_CTB_SIGNER_NAME": "example.com/s", "AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR": `{"matchLabels":{"a":"b"}}`,
	}), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	want := mutation.TokenEndpoint{
		Suffix: "identity-binding", Audience: "api://x", Proxy: "https://proxy", SNIName: "sni",
		CASigner: "example.com/s", CALabelSelector: json.RawMessage(`{"matchLabels":{"a":"b"}}`),
	}
	if diff := cmp.Diff(want, s.Endpoint); diff != "" {
		t.Error(diff)
	}
}

func TestSettingsWithoutEffectAreNoted(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"an endpoint without flags": {nil, map[string]string{"AZURE_TENANT_ID": "t", "AZURE_KUBERNETES_TOKEN_PROXY": "https://proxy"}, "have no effect without --custom-token-endpoint-annotation-suffix"},
		"an endpoint without a URL": {[]string{"--custom-token-endpoint-annotation-suffix=x", "--custom-token-endpoint-audience=api://x"}, map[string]string{"AZURE_TENANT_ID": "t"},
			"AZURE_KUBERNETES_TOKEN_PROXY is not set: pods with the annotation azure.workload.identity/use-x get a token"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := parse(tc.args, environment(tc.env), &bytes.Buffer{})
			if err != nil || len(s.notes) != 1 || !strings.Contains(s.notes[0], tc.want) {
				t.Errorf("notes %q, %v; want %q", s.notes, err, tc.want)
			}
		})
	}
}

func TestOldTLSVersionsMean12(t *testing.T) {
	for _, version := range []string{"1.0", "1.1"} {
		s, err := parse([]string{"--tls-min-version", version}, environment(map[string]string{"AZURE_TENANT_ID": "t"}), &bytes.Buffer{})
		if err != nil || s.tlsMin != tls.VersionTLS12 || len(s.notes) != 1 {
			t.Errorf("%s: %x, %q, %v", version, s.tlsMin, s.notes, err)
		}
	}
}

// The API server drops a member that is written in another case: what is set
// for every pod must not depend on it.
func TestJSONOfTheSettingsIsPassedOnAsTheAPIServerReadsIt(t *testing.T) {
	s, err := parse([]string{
		`--proxy-resources={"Limits":{"memory":"20Mi"}}`, "--serving-names=webhook.example, ::1",
		"--custom-token-endpoint-annotation-suffix=x", "--custom-token-endpoint-audience=api://x",
	}, environment(map[string]string{
		"AZURE_TENANT_ID": "t", "AZURE_KUBERNETES_TOKEN_PROXY": "https://proxy", "AZURE_KUBERNETES_CA_CTB_SIGNER_NAME": "example.com/s",
		"AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR": `{"MatchLabels":{"a":"b"}}`,
	}), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	got := []string{string(s.Proxy.Resources), string(s.Endpoint.CALabelSelector), s.servedName}
	if diff := cmp.Diff([]string{`{"limits":{"memory":"20Mi"}}`, `{"matchLabels":{"a":"b"}}`, "webhook.example,::1"}, got); diff != "" {
		t.Error(diff)
	}
}
