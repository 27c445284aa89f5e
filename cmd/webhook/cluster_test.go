package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

var cluster labtest.Cluster

// As a process outside the cluster: how the lab runs it where there is no node.
func TestTheProgramServesUntilItIsToldToEnd(t *testing.T) {
	c, err := client.New(cluster.Config(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := deploy.Manifests("webhook")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(manifest[0]), "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatal(err)
		}
		if kind := o.GetKind(); kind == "Namespace" || kind == "MutatingWebhookConfiguration" {
			if err := c.Create(t.Context(), o); err != nil && !apierrors.IsAlreadyExists(err) {
				t.Fatal(err)
			}
		}
	}

	logs, stderr := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{
			"--kubeconfig", cluster.Kubeconfig(t), "--webhook-addr=127.0.0.1:0", "--health-addr=127.0.0.1:0", "--metrics-addr=127.0.0.1:0",
			"--serving-names=127.0.0.1", "--shutdown-delay=0", "--doctor=report",
		}, environment(map[string]string{"AZURE_TENANT_ID": "t"}), io.Discard, stderr)
		ended <- errors.Join(err, stderr.Close())
	}()
	lines := bufio.NewScanner(logs)
	var started struct{ HealthAddr, MetricsAddr string }
	for started.HealthAddr == "" && lines.Scan() {
		if err := json.Unmarshal(lines.Bytes(), &started); err != nil {
			t.Fatalf("a log line is no JSON: %s", lines.Text())
		}
	}
	go func() {
		for lines.Scan() { // or the program would wait for its reader
		}
	}()
	labtest.Eventually(t, t.Context(), func() error {
		text, err := get("http://" + started.HealthAddr + "/readyz")
		if err == nil && text != "ok" {
			err = errors.New(text)
		}
		return err
	})
	text, err := get("http://" + started.MetricsAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`azwi_mutation_request_count{decision="mutated"} 0`, "lanyard_webhook_annotated_service_accounts 0",
		"lanyard_webhook_certificate_expiry_timestamp_seconds 1.", "go_goroutines",
		`controller_runtime_webhook_requests_total{code="200",webhook="/mutate-v1-pod"} 0`, `controller_runtime_webhook_requests_in_flight{webhook="/mutate-v1-pod"} 0`,
		`lanyard_webhook_doctor_pods{finding="NotMutated"} 0`, `lanyard_webhook_doctor_evictions_total{result="evicted"} 0`,
		"controller_runtime_webhook_panics_total 0", `controller_runtime_webhook_latency_seconds_count{webhook="/mutate-v1-pod"} 0`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %q:\n%s", want, text)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func get(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%d %s", resp.StatusCode, text)
	}
	return string(text), err
}
