package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

func TestTheManifestsOfPodIdentityV1Parse(t *testing.T) {
	args := []string{
		"--cloudconfig=/etc/kubernetes/azure.json", "--logtostderr", "--v=0", "--log-format=text", "--leader-election-instance=$(MIC_POD_NAME)",
		"--leader-election-namespace=kube-system", "--leader-election-name=m", "--leader-election-duration=20s", "--http-probe-port=8081", "--syncRetryDuration=1h",
		"--immutable-user-msis=A, b,", "--createDeleteBatch=20", "--clientQps=5", "--prometheus-port=0", "--enableProfile=false", "--enableScaleFeatures=true",
		"--config-map-name=c", "--type-upgrade-status-key=k", "--enable-type-upgrade=true", "--update-user-msi-max-retry=2", "--update-user-msi-retry-interval=1s",
		"--identity-assignment-reconcile-interval=1m", "--custom-user-agent=x", "--forceNamespaced=true", "--kubeconfig=",
	}
	s, err := parse(args, env(), &bytes.Buffer{}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "azure.json")
	if err := os.WriteFile(file, []byte(`{"tenantId":"11111111-2222-3333-4444-555555555555","aadClientId":"c","aadClientSecret":"s"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.cloudConfig = file
	kube := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(kube, []byte("clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubeconfig = kube
	c, err := s.config()
	if err != nil {
		t.Fatal(err)
	}
	type shown struct {
		Force, Election           bool
		Namespace, Name, Instance string
		Health, Metrics           string
		Lease, Recheck, Lead      time.Duration
		Immutable                 []string
		Assignee                  string
		QPS                       float32
		Burst                     int
	}
	got := shown{c.ForceNamespaced, c.Election != nil, c.Election.Namespace, c.Election.Name, c.Election.Instance, c.HealthAddress, c.MetricsAddress, c.Election.Duration, c.Recheck, c.WindowLead, c.ImmutableClientIDs, c.Assignee(), c.Kubernetes.QPS, c.Kubernetes.Burst}
	want := shown{true, true, "kube-system", "m", "$(MIC_POD_NAME)", ":8081", "", 20 * time.Second, time.Minute, 2 * time.Minute, []string{"A", "b"}, "c", 5, 5}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestBadInputIsRefusedWithWhatToDo(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	sp := []string{"TENANT_ID", "11111111-2222-3333-4444-555555555555", "CLIENT_ID", "c", "CLIENT_SECRET", "s3cret"}
	for _, c := range []struct {
		name string
		args []string
		env  []string
		want string
	}{
		{"an argument", []string{"start"}, sp, "every setting is a flag"},
		{"an unknown flag", []string{"--nonsense"}, sp, "nonsense"},
		{"a log format", []string{"--log-format=xml"}, sp, "only text and json"},
		{"a port", []string{"--http-probe-port=70000"}, sp, "must be ports"},
		{"a Lease without a name", []string{"--leader-election-name="}, sp, "name the Lease"},
		{"a short Lease", []string{"--leader-election-duration=1ms"}, sp, "at least a second"},
		{"a negative rate", []string{"--clientQps=-1"}, sp, "must not be negative"},
		{"no credential", nil, nil, "set TENANT_ID, CLIENT_ID and CLIENT_SECRET"},
		{"half a credential", nil, sp[:4], "set TENANT_ID, CLIENT_ID and CLIENT_SECRET"},
		{"a strange USE_MSI", nil, []string{"USE_MSI", "perhaps"}, `USE_MSI="perhaps": write true or false`},
		{"a strange cloud", nil, append([]string{"CLOUD", "Nimbus"}, sp...), `unknown cloud "Nimbus"`},
		{"no file", []string{"--cloudconfig=" + missing}, nil, "reading --cloudconfig"},
		{"no description of the cloud", nil, append([]string{"CLOUD", "AzureStackCloud", "AZURE_ENVIRONMENT_FILEPATH", missing}, sp...), "AZURE_ENVIRONMENT_FILEPATH"},
		{"no cluster", nil, sp, "not in a cluster"},
		{"no kubeconfig", []string{"--kubeconfig=" + missing}, sp, "missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			err := run(t.Context(), c.args, env(c.env...), &out, &errs)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if all := err.Error() + out.String() + errs.String(); strings.Contains(all, "s3cret") {
				t.Errorf("the output shows the secret: %s", all)
			}
		})
	}
}

func TestHelpShowsExamplesAndVersionIsShort(t *testing.T) {
	var out, errs bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, env(), &out, &errs); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"mic --cloudconfig=", "-leader-election-namespace", "USE_MSI=true"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("the help lacks %q", want)
		}
	}
	if err := run(t.Context(), []string{"--version"}, env(), &out, &errs); err != nil || out.String() != "mic "+version+"\n" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}
