package door2

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/bench/bed"
	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
)

// onePod has two containers, 1.8 kB, and the service account sa-00000.
//
//go:embed pod.json
var onePod []byte

// review is the pod's creation in the namespace, of the service account, as an
// API server sends it.
func review(account string, annotations map[string]string) ([]byte, error) {
	p := &unstructured.Unstructured{}
	if err := p.UnmarshalJSON(onePod); err != nil {
		return nil, err
	}
	all := p.GetAnnotations()
	for k, v := range annotations {
		all[k] = v
	}
	p.SetAnnotations(all)
	if err := unstructured.SetNestedField(p.Object, account, "spec", "serviceAccountName"); err != nil {
		return nil, err
	}
	raw, err := p.MarshalJSON()
	if err != nil {
		return nil, err
	}
	r := admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "0b1c2d3e-4f50-4617-8293-a4b5c6d7e8f9", Operation: admissionv1.Create, Namespace: p.GetNamespace(),
			Kind:     metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
			Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		},
	}
	r.Request.Object.Raw = bytes.TrimSpace(raw)
	return json.Marshal(r)
}

// A caller asks one webhook as an API server does.
type caller struct {
	http *http.Client
	url  string
}

// call makes a caller with connections of its own.
func call(b *bed.Bed, pool *x509.CertPool, two bool) *caller {
	transport := &http.Transport{
		DialContext: b.NS.DialContext, MaxIdleConnsPerHost: admitters, ForceAttemptHTTP2: two,
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13},
	}
	return &caller{http: &http.Client{Transport: transport, Timeout: 30 * time.Second}, url: "https://" + bed.At(webhookPort).String() + workloadidentity.WebhookPath + "?timeout=10s"}
}

func (c *caller) close() { c.http.CloseIdleConnections() }

func (c *caller) post(ctx context.Context, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("the webhook answers %s: %.200s", res.Status, text)
	}
	return text, err
}

// admit asks once and requires a patch with the client id.
func (c *caller) admit(ctx context.Context, body []byte, clientID string) (answer []byte, took time.Duration, err error) {
	started := time.Now()
	answer, err = c.post(ctx, body)
	took = time.Since(started)
	if err != nil {
		return nil, took, err
	}
	return answer, took, mutated(answer, clientID)
}

// mutated requires an answer that gives the pod an identity.
func mutated(answer []byte, clientID string) error {
	var r admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &r); err != nil {
		return fmt.Errorf("the webhook's answer is no review: %.200q", answer)
	}
	if r.Response == nil || !r.Response.Allowed || !bytes.Contains(r.Response.Patch, []byte(clientID)) {
		return fmt.Errorf("the webhook gives no identity: %.400s", answer)
	}
	return nil
}

// admitters is how many callers ask at the same time: c=8 of the reference.
const admitters = 8

// load asks for the time of a run, with some callers at once. Every answer has to
// be the first one, byte for byte.
func (c *caller) load(ctx context.Context, body []byte, clientID string, pid int, span time.Duration) (r load.Result, err error) {
	want, _, err := c.admit(ctx, body, clientID)
	if err != nil {
		return r, err
	}
	took := make([][]time.Duration, admitters)
	before, err := meter.CPU(pid)
	if err != nil {
		return r, err
	}
	started := time.Now()
	g, running := errgroup.WithContext(ctx)
	for i := range took {
		g.Go(func() error {
			for time.Since(started) < span {
				asked := time.Now()
				got, err := c.post(running, body)
				if err != nil {
					return err
				}
				if !bytes.Equal(got, want) {
					return fmt.Errorf("one answer is not as the first: %.300s", got)
				}
				took[i] = append(took[i], time.Since(asked))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return r, err
	}
	r.Elapsed = time.Since(started)
	after, err := meter.CPU(pid)
	r.CPU = after - before
	for _, t := range took {
		r.Latencies = append(r.Latencies, t...)
	}
	r.Requests = len(r.Latencies)
	return r, err
}

// refused reports whether nobody listens there.
func refused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
