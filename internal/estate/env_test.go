package estate

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A shell that already points clients at another proxy and other authorities
// must not keep one of them: curl and Python would bypass the cloud.
func TestEnvReplacesWhatAShellHas(t *testing.T) {
	const proxy, direct, ca = "http://127.0.0.1:1234", "127.0.0.1,localhost,169.254.169.254", "/it's here/ca.crt"
	want := map[string]string{
		"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": direct, "no_proxy": direct,
		"SSL_CERT_FILE": ca, "CURL_CA_BUNDLE": ca, "NODE_EXTRA_CA_CERTS": ca, "REQUESTS_CA_BUNDLE": ca,
		"AZURE_CLIENT_SECRET": "a$b`c\"d'e f", "AZURE_CONFIG_DIR": "/az",
	}
	var script strings.Builder
	env := append(CloudEnv("127.0.0.1:1234", ca, "/az"), PrincipalEnv("tenant", "subscription", "client", want["AZURE_CLIENT_SECRET"])...)
	if err := append(env, Var{"PATH", "/lab/bin"}).WriteShell(&script); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-eu")
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	for name := range want {
		cmd.Env = append(cmd.Env, name+"=old")
	}
	cmd.Stdin = strings.NewReader(script.String() + "/usr/bin/env -0\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script.String())
	}
	got := map[string]string{}
	for v := range strings.SplitSeq(string(out), "\x00") {
		name, value, _ := strings.Cut(v, "=")
		if _, ok := want[name]; ok || name == "PATH" {
			got[name] = value
		}
	}
	want["PATH"] = "/lab/bin:/usr/bin:/bin"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("after the script (-want +got):\n%s", diff)
	}
}
