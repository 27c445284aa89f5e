package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/lab/netns/netnstest"
	"github.com/lanyard-id/lanyard/internal/redirect/pod"
)

// asProxy makes this test binary the program itself, under its own name.
const asProxy = "LANYARD_TEST_PROXY"

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asProxy) != "":
		main()
	case os.Getenv(asProgram) != "":
		program(os.Getenv(asProgram))
	default:
		netnstest.Main(m.Run)
	}
}

var update = flag.Bool("update", false, "write testdata/packages.txt anew")

func env(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

// The sidecar is in every pod that asks for it: what it links is looked at.
func TestTheLinkedPackagesAreTheOnesThatWereAgreedOn(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		// The standard library's own parts change with every release of Go.
		if line = strings.TrimSpace(line); strings.Contains(strings.Split(line, "/")[0], ".") {
			got = append(got, line)
		}
	}
	golden := filepath.Join("testdata", "packages.txt")
	if *update {
		if err := os.WriteFile(golden, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Fields(string(want)), got); diff != "" {
		t.Errorf("other packages are linked; if that is meant: go test ./cmd/proxy -update\n%s", diff)
	}
}

func TestTheBinaryIsSmall(t *testing.T) {
	info, err := os.Stat(built(t))
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= 12_000_000 {
		t.Errorf("the binary has %d bytes, want fewer than 12 MB", info.Size())
	}
	t.Logf("%d bytes", info.Size())
}

func TestTheNameOrTheFirstArgumentChoosesInit(t *testing.T) {
	bad := env(map[string]string{"PROXY_PORT": "x"})
	for _, args := range [][]string{{"/proxy-init"}, {"proxy-init"}, {"/proxy", "init"}} {
		if err := run(t.Context(), args, bad, &bytes.Buffer{}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "PROXY_PORT=x") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if err := run(t.Context(), []string{"/proxy"}, bad, &bytes.Buffer{}, &bytes.Buffer{}); err == nil || !strings.HasPrefix(err.Error(), "AZURE_TENANT_ID not set") {
		t.Errorf("the sidecar: %v", err)
	}
}

func TestTheCommandLine(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string // of the error; empty means none
	}{
		"nothing":               {nil, ""},
		"as v1.6's webhook":     {[]string{"--proxy-port=8080", "--log-level=info"}, ""},
		"its hook":              {[]string{"--proxy-port=8080", "--probe", "--log-level=info"}, ""},
		"log level trace":       {[]string{"--log-level=trace"}, ""},
		"an empty log level":    {[]string{"--log-level="}, ""},
		"an unknown log level":  {[]string{"--log-level=loud"}, "--log-level=loud"},
		"port 0":                {[]string{"--proxy-port=0"}, "1 to 65535"},
		"a port that is none":   {[]string{"--proxy-port=70000"}, "1 to 65535"},
		"a negative port":       {[]string{"--proxy-port=-1"}, "invalid value"},
		"an unknown flag":       {[]string{"--proxy"}, "not defined"},
		"something else":        {[]string{"serve"}, `"serve" is no flag`},
		"an argument after it":  {[]string{"--probe", "x"}, `"x" is no flag`},
		"init with an argument": {[]string{"init", "x"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if len(tt.args) > 0 && tt.args[0] == "init" {
				if err := initialize(tt.args[1:], env(nil), &bytes.Buffer{}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "takes no arguments") {
					t.Error(err)
				}
				return
			}
			_, err := parse(tt.args, &bytes.Buffer{})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestVersionIsJSON(t *testing.T) {
	for _, args := range [][]string{{"proxy", "--version"}, {"proxy-init", "--version"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args, env(nil), &out, &bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
		var v map[string]string
		if err := json.Unmarshal(out.Bytes(), &v); err != nil || v["buildVersion"] != version || v["goVersion"] == "" || v["platform"] == "" || len(v) != 5 {
			t.Errorf("%v: %v in %s", args, err, out.String())
		}
	}
}

func TestHelpIsNoError(t *testing.T) {
	var errs bytes.Buffer
	if err := run(t.Context(), []string{"proxy", "--help"}, env(nil), &bytes.Buffer{}, &errs); err != nil || !strings.Contains(errs.String(), "--probe") {
		t.Errorf("%v: %s", err, errs.String())
	}
}

func TestASidecarThatCannotWorkSaysWhy(t *testing.T) {
	for name, tt := range map[string]struct {
		change map[string]string
		want   string
	}{
		"no tenant":                  {map[string]string{"AZURE_TENANT_ID": ""}, "AZURE_TENANT_ID not set"},
		"no token file":              {map[string]string{"AZURE_FEDERATED_TOKEN_FILE": ""}, "AZURE_FEDERATED_TOKEN_FILE not set"},
		"a tenant that is a path":    {map[string]string{"AZURE_TENANT_ID": "../common"}, "neither an id nor a domain name"},
		"an authority without TLS":   {map[string]string{"AZURE_AUTHORITY_HOST": "http://login.microsoftonline.com/"}, "does not begin with https://"},
		"a metadata address of none": {map[string]string{"METADATA_IP": "metadata"}, "METADATA_IP=metadata is not an address"},
		"a metadata port of none":    {map[string]string{"METADATA_PORT": "http"}, "METADATA_PORT=http"},
	} {
		t.Run(name, func(t *testing.T) {
			pairs := map[string]string{"AZURE_TENANT_ID": "contoso.com", "AZURE_FEDERATED_TOKEN_FILE": "/token"}
			for k, v := range tt.change {
				pairs[k] = v
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := run(ctx, []string{"proxy"}, env(pairs), &bytes.Buffer{}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestTheEnvironmentOfInit(t *testing.T) {
	usual := pod.Rules{Metadata: []netip.AddrPort{netip.MustParseAddrPort("169.254.169.254:80")}, Port: 8000, UID: 1501}
	for name, tt := range map[string]struct {
		env   map[string]string
		want  func(*pod.Rules)
		error string
	}{
		"nothing":           {nil, func(*pod.Rules) {}, ""},
		"as v1.6's webhook": {map[string]string{"PROXY_PORT": "8080"}, func(r *pod.Rules) { r.Port = 8080 }, ""},
		"all of v1.6's script": {map[string]string{"PROXY_PORT": "8080", "METADATA_IP": "169.254.169.253", "METADATA_PORT": "8081", "PROXY_UID": "0"}, func(r *pod.Rules) {
			*r = pod.Rules{Metadata: []netip.AddrPort{netip.MustParseAddrPort("169.254.169.253:8081")}, Port: 8080}
		}, ""},
		"IPv6 too":           {map[string]string{"METADATA_IPV6": "fd00:ec2::254"}, func(r *pod.Rules) { r.Metadata = append(r.Metadata, netip.MustParseAddrPort("[fd00:ec2::254]:80")) }, ""},
		"a port of none":     {map[string]string{"PROXY_PORT": "70000"}, nil, "PROXY_PORT=70000"},
		"a user of none":     {map[string]string{"PROXY_UID": "proxy"}, nil, "PROXY_UID=proxy"},
		"a negative user":    {map[string]string{"PROXY_UID": "-1"}, nil, "PROXY_UID=-1"},
		"an address of none": {map[string]string{"METADATA_IP": "imds"}, nil, "METADATA_IP=imds"},
		"IPv4 as IPv6":       {map[string]string{"METADATA_IPV6": "169.254.169.254"}, nil, "not an IPv6 address"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := rules(env(tt.env))
			if tt.error != "" {
				if err == nil || !strings.Contains(err.Error(), tt.error) {
					t.Errorf("got %v, want %q", err, tt.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := usual
			want.Metadata = append([]netip.AddrPort(nil), usual.Metadata...)
			tt.want(&want)
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
		})
	}
}
