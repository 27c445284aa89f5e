package main

import (
	"bytes"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lanyard-id/lanyard/internal/arm"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestFlagsThatCannotBeMeantAreRefused(t *testing.T) {
	for name, tc := range map[string]struct{ arg, want string }{
		"an argument":                    {"start", "every setting is a flag"},
		"a format that does not exist":   {"--log-format=xml", "only text and json"},
		"a port that is none":            {"--prometheus-port=70000", "0 to 65535"},
		"an interval that Azure refuses": {"--interval=1s", "at least 10s"},
		"a delay of nothing":             {"--probe-delay=0s", "more than 0s"},
		"a Lease without a name":         {"--leader-election-name=", "name the Lease"},
		"a Lease for a moment":           {"--leader-election-duration=1ms", "at least a second"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse([]string{tc.arg}, env(), &bytes.Buffer{}, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestAsWhom(t *testing.T) {
	file := filepath.Join(t.TempDir(), "azure.json")
	write(t, file, `{"cloud":"AzureChinaCloud","tenantId":"t","aadClientId":"msi","aadClientSecret":"msi","useManagedIdentityExtension":true,"userAssignedIdentityID":"u"}`)
	for name, tc := range map[string]struct {
		file, method, client, wantErr string
		env                           []string
	}{
		"nobody":                              {wantErr: "no credential for Azure"},
		"mic's secret":                        {env: []string{"TENANT_ID", "t", "CLIENT_ID", "c", "CLIENT_SECRET", "s"}, method: arm.MethodClientSecret, client: "c"},
		"a secret without tenant":             {env: []string{"CLIENT_ID", "c", "CLIENT_SECRET", "s"}, wantErr: "no credential for Azure"},
		"a machine's identity":                {env: []string{"USE_MSI", "true", "USER_ASSIGNED_MSI_CLIENT_ID", "u"}, method: arm.MethodManagedIdentity, client: "u"},
		"a switch that is neither on nor off": {env: []string{"USE_MSI", "perhaps"}, wantErr: "write true or false"},
		"workload identity":                   {env: []string{"AZURE_TENANT_ID", "t", "AZURE_CLIENT_ID", "w", "AZURE_FEDERATED_TOKEN_FILE", "/token"}, method: arm.MethodWorkloadIdentity, client: "w"},
		"a secret before workload identity":   {env: []string{"TENANT_ID", "t", "CLIENT_ID", "c", "CLIENT_SECRET", "s", "AZURE_FEDERATED_TOKEN_FILE", "/token"}, method: arm.MethodClientSecret, client: "c"},
		"the cluster's identity":              {file: file, method: arm.MethodManagedIdentity, client: "u"},
		"a file that is not there":            {file: file + "x", wantErr: "reading --cloudconfig"},
		"a cloud that does not exist":         {env: []string{"CLOUD", "Moon", "USE_MSI", "true"}, wantErr: "unknown cloud"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := settings{cloudConfig: tc.file, getenv: env(tc.env...)}.account()
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("%v, want %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || got.login.Method != tc.method || got.login.ClientID != tc.client {
				t.Errorf("%v %v, want %s as %s", got.login, err, tc.method, tc.client)
			}
		})
	}
}

func TestTheAudienceIsTheClouds(t *testing.T) {
	for cloud, want := range map[string]string{
		arm.Public: "api://AzureADTokenExchange", arm.Government: "api://AzureADTokenExchangeUSGov", arm.China: "api://AzureADTokenExchangeChina", arm.Stack: "api://AzureADTokenExchange",
	} {
		if got := audience(cloud); got != want {
			t.Errorf("%s: %s", cloud, got)
		}
	}
}

func TestAChangedFileIsInForceAndABadOneIsNot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "azure.json")
	write(t, file, `{"tenantId":"t","aadClientId":"c","aadClientSecret":"first"}`)
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		a := &account{load: settings{cloudConfig: file, getenv: env()}.account, file: file, logger: slog.New(slog.NewTextHandler(&log, nil))}
		if _, err := a.open(); err != nil {
			t.Fatal(err)
		}
		first := a.now()
		pass := func() { <-time.After(checkInterval) }
		write(t, file, `{"tenantId":`)
		pass()
		if a.now() != first {
			t.Error("a file that cannot be read took effect")
		}
		write(t, file, `{"tenantId":"t","aadClientId":"c","aadClientSecret":"second"}`)
		pass()
		if a.now() == first {
			t.Error("the changed file took no effect")
		}
	})
	if text := log.String(); strings.Contains(text, "first") || strings.Contains(text, "second") || strings.Count(text, "level=ERROR") != 1 {
		t.Errorf("log %s", text)
	}
}

func TestHelpAndVersion(t *testing.T) {
	var out, errs bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, env(), &out, &errs); !errors.Is(err, flag.ErrHelp) || !strings.Contains(errs.String(), "-abandon-after") {
		t.Errorf("%v %s", err, errs.String())
	}
	if err := run(t.Context(), []string{"--version"}, env(), &out, &errs); err != nil || out.String() != "federation devel\n" {
		t.Errorf("%v %q", err, out.String())
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
