package webhook

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook/servingcert"
)

func TestTwoReplicasServeOneCertificate(t *testing.T) {
	install(t, "https://127.0.0.1:1")
	config := account(t)
	replicas := []*replica{newReplica(t, config), newReplica(t, config)}
	for _, r := range replicas {
		r.run(t)
	}
	leaf := func(r *replica) []byte {
		c, err := r.certificates.GetCertificate(nil)
		if err != nil {
			return nil
		}
		return c.Certificate[0]
	}
	agree := func() error {
		a, b := leaf(replicas[0]), leaf(replicas[1])
		if a == nil || !bytes.Equal(a, b) {
			return errors.New("the replicas serve different certificates")
		}
		return nil
	}
	labtest.Eventually(t, t.Context(), agree)
	for _, r := range replicas {
		labtest.Eventually(t, t.Context(), r.ready)
	}
	first := leaf(replicas[0])
	c, err := client.New(cluster.Config(t), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	stored := func(secret *corev1.Secret) error {
		return c.Get(t.Context(), client.ObjectKey{Name: workloadidentity.CertificateSecret, Namespace: workloadidentity.Namespace}, secret)
	}
	trusted := func() error {
		secret := &corev1.Secret{}
		if err := stored(secret); err != nil {
			return err
		}
		o := configuration(t, c)
		w := o.Object["webhooks"].([]any)[0].(map[string]any)
		got, _, _ := unstructured.NestedString(w, "clientConfig", "caBundle")
		if want := base64.StdEncoding.EncodeToString(secret.Data["ca.crt"]); got != want || got == "" {
			return fmt.Errorf("caBundle is %q", got)
		}
		return nil
	}
	labtest.Eventually(t, t.Context(), trusted)

	t.Run("a removed Secret comes back with the certificate that is trusted", func(t *testing.T) {
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: workloadidentity.CertificateSecret, Namespace: workloadidentity.Namespace}}
		if err := c.Delete(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, t.Context(), func() error { return stored(secret) })
		m, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
		if err != nil || !bytes.Equal(m.Certificate[0], first) {
			t.Errorf("another certificate came back: %v", err)
		}
		labtest.Eventually(t, t.Context(), agree)
	})
	t.Run("a spoiled Secret is repaired", func(t *testing.T) {
		secret := &corev1.Secret{}
		if err := stored(secret); err != nil {
			t.Fatal(err)
		}
		secret.Data["tls.key"] = []byte("garbage")
		if err := c.Update(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, t.Context(), func() error {
			if err := stored(secret); err != nil {
				return err
			}
			_, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
			return err
		})
		labtest.Eventually(t, t.Context(), agree)
	})
	t.Run("an emptied caBundle is written again", func(t *testing.T) {
		o := configuration(t, c)
		pointTo(o, "https://127.0.0.1:1")
		if err := c.Update(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		labtest.Eventually(t, t.Context(), trusted)
	})
}

func TestRotationFailsNoAdmission(t *testing.T) {
	install(t, "https://127.0.0.1:1")
	r := newReplica(t, account(t))
	// Every 4 s a certificate, after 10 s an authority; 8 s of grace for a busy machine.
	r.certificates.Policy = servingcert.Policy{CALifetime: 30 * time.Second, Lifetime: 12 * time.Second, RenewBefore: 8 * time.Second, Settle: 3 * time.Second}
	// The API server must meet every new certificate: no connection outlives its request.
	admission := r.server.Admission
	r.server.Admission = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Connection", "close")
		admission.ServeHTTP(w, req)
	})
	// A second replica that contends for every renewal.
	second := newReplica(t, account(t))
	second.certificates.Policy = r.certificates.Policy
	redirect(t, r.url())
	r.run(t)
	second.run(t)
	labtest.Eventually(t, t.Context(), r.ready)

	kube, _ := clientset(t)
	namespace := cluster.Namespace(t)
	admit := func() error {
		_, err := kube.CoreV1().Pods(namespace).Create(t.Context(), podOf("default", nil), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	labtest.Eventually(t, t.Context(), admit) // the API server has read the caBundle
	served := func() *x509.Certificate {
		c, err := r.certificates.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf
	}
	authority := func() string { return string(served().AuthorityKeyId) }
	first, leaves := authority(), map[string]bool{}
	var mu sync.Mutex
	admissions := 0
	deadline := time.Now().Add(2 * time.Minute)
	for authority() == first || len(leaves) < 4 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := admit(); err != nil {
					t.Errorf("an admission failed: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				admissions++
			})
		}
		wg.Wait()
		leaves[served().SerialNumber.String()] = true
		if t.Failed() || time.Now().After(deadline) {
			t.Fatalf("after %d admissions: %d certificates, authority replaced: %v", admissions, len(leaves), authority() != first)
		}
	}
	t.Logf("%d admissions over %d certificates and 2 authorities", admissions, len(leaves))
}
