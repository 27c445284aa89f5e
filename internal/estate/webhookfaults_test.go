package estate_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// scale sets the webhook's replicas; with none its pods go at once, as when
// their nodes are lost.
func (s *shop) scale(t *testing.T, replicas int) {
	t.Helper()
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: webhookNS, Name: webhooks}}
	s.patch(t, d, fmt.Sprintf(`[{"op":"replace","path":"/spec/replicas","value":%d}]`, replicas))
	if replicas > 0 {
		return
	}
	until(t, 20*time.Second, "the webhook is down", func(ctx context.Context) error {
		if err := s.Objects.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(webhookNS), client.GracePeriodSeconds(0)); err != nil {
			return err
		}
		_, _, err := s.try(ctx)
		if !refused(err) {
			return fmt.Errorf("a pod is answered with %w", err)
		}
		return nil
	})
}

// try asks the API server whether it would admit a pod that asks for an
// identity: the webhook is called, and nothing is made.
func (s *shop) try(ctx context.Context) (got *corev1.Pod, took time.Duration, err error) {
	got = labelled("", "red", workload("main"))
	got.GenerateName = "try-"
	began := time.Now()
	err = s.Objects.Create(ctx, got, client.DryRunAll)
	return got, time.Since(began), err
}

// refused tells whether an error is the API server's that could not ask the webhook.
func refused(err error) bool {
	return apierrors.IsInternalError(err) && strings.Contains(err.Error(), "failed calling webhook")
}

// An admission is an answer to try.
type admission struct {
	began, ended time.Time
	mutated      bool
	err          error
}

// admissions asks for a pod all the time, until stop is called, which tells
// what came of it.
func (s *shop) admissions(t *testing.T) (stop func() []admission) {
	ctx, cancel := context.WithCancel(t.Context())
	var all []admission
	var g sync.WaitGroup
	g.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			began := time.Now()
			p, _, err := s.try(ctx)
			if ctx.Err() != nil {
				return
			}
			all = append(all, admission{began, time.Now(), mutated(p), err})
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() { cancel(); g.Wait() })
	return func() []admission {
		cancel()
		g.Wait()
		return all
	}
}

// judgeAdmissions asserts that every pod was mutated or refused, and no time
// without one that was mutated was longer than limit.
func judgeAdmissions(t *testing.T, all []admission, limit time.Duration) {
	t.Helper()
	var gap time.Duration
	failures := map[string]int{}
	last, good := all[0].began, 0
	for _, a := range all {
		switch {
		case a.err != nil:
			failures[a.err.Error()]++
		case !a.mutated:
			t.Errorf("at %s a pod was admitted as it is", a.ended.Format("15:04:05.000"))
		default:
			gap, last, good = max(gap, a.ended.Sub(last)), a.ended, good+1
		}
	}
	gap = max(gap, all[len(all)-1].ended.Sub(last))
	t.Logf("%d of %d pods were admitted, the longest time without one was %s; otherwise %v", good, len(all), gap.Round(time.Millisecond), slices.Collect(maps.Keys(failures)))
	if gap > limit {
		t.Errorf("for %s no pod was admitted, longer than %s", gap, limit)
	}
}

// webhookDown: pods are refused rather than run without an identity, what runs
// goes on, and the rollout ends by itself. The webhook was down for so long that
// its certificate expired meanwhile.
func webhookDown(t *testing.T, s *shop) {
	d := s.deploy(t, "web", "red")
	s.untilServed(t, 30*time.Second, "web", "red")
	old, err := s.podsOf(t.Context(), "web")
	must(t, err)
	s.scale(t, 0)
	s.secret(t, expired(t))
	s.patch(t, d, `[{"op":"add","path":"/spec/template/metadata/annotations","value":{"release":"2"}}]`)
	until(t, 30*time.Second, "the rollout is refused again and again", func(ctx context.Context) error {
		var events corev1.EventList
		if err := s.Objects.List(ctx, &events, client.InNamespace(namespace)); err != nil {
			return err
		}
		refusals := int32(0)
		for _, e := range events.Items {
			if e.Reason == "FailedCreate" && strings.HasPrefix(e.InvolvedObject.Name, "web-") && strings.Contains(e.Message, workloadidentity.WebhookName) {
				refusals += e.Count
			}
		}
		if refusals < 5 {
			return fmt.Errorf("%d times", refusals)
		}
		return nil
	})
	during, err := s.podsOf(t.Context(), "web")
	must(t, err)
	if got, want := uids(during), uids(old); !slices.Equal(got, want) {
		t.Errorf("the pods %v should be the ones of before: %v", got, want)
	}
	s.scale(t, 2)
	back := time.Now()
	s.rolledOut(t, 60*time.Second, webhookNS, webhooks)
	s.rolledOut(t, 60*time.Second, namespace, "web")
	t.Logf("the rollout has ended %.1f s after the webhook was started", time.Since(back).Seconds())
	s.untilServed(t, 30*time.Second, "web", "red")
	after, err := s.podsOf(t.Context(), "web")
	must(t, err)
	for _, id := range uids(after) {
		if slices.Contains(uids(old), id) {
			t.Errorf("the pod %s is not new: this proves nothing", id)
		}
	}
	s.certified(t)
	must(t, s.Objects.Delete(t.Context(), d))
}

func uids(pods []corev1.Pod) (all []string) {
	for i := range pods {
		all = append(all, string(pods[i].UID))
	}
	slices.Sort(all)
	return all
}

// secret replaces what is in the webhook's Secret.
func (s *shop) secret(t *testing.T, data map[string][]byte) {
	t.Helper()
	until(t, 10*time.Second, "the Secret is replaced", func(ctx context.Context) error {
		o, err := s.certificates(ctx)
		if err != nil {
			return err
		}
		o.Data = data
		return s.Objects.Update(ctx, o)
	})
}

func (s *shop) certificates(ctx context.Context) (*corev1.Secret, error) {
	o := &corev1.Secret{}
	return o, s.Objects.Get(ctx, client.ObjectKey{Namespace: webhookNS, Name: workloadidentity.CertificateSecret}, o)
}

func (s *shop) configuration() *admissionv1.MutatingWebhookConfiguration {
	return &admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: workloadidentity.WebhookConfiguration}}
}

// expired is a Secret of a webhook that was off for years.
func expired(t *testing.T) map[string][]byte {
	t.Helper()
	year := 365 * 24 * time.Hour
	make := func(name string, ca bool, ends time.Time, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: ends.Add(-10 * year), NotAfter: ends,
			IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			DNSNames: []string{workloadidentity.WebhookService + "." + webhookNS + ".svc"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		if parent == nil {
			parent, signer = c, key
		}
		raw, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
		must(t, err)
		c, err = x509.ParseCertificate(raw)
		must(t, err)
		return c, key
	}
	encode := func(kind string, raw []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}) }
	private := func(k *ecdsa.PrivateKey) []byte {
		raw, err := x509.MarshalPKCS8PrivateKey(k)
		must(t, err)
		return encode("PRIVATE KEY", raw)
	}
	ca, caKey := make("azure-workload-identity-ca", true, time.Now().Add(-time.Hour), nil, nil)
	leaf, key := make("webhook", false, time.Now().Add(-2*time.Hour), ca, caKey)
	return map[string][]byte{"ca.crt": encode("CERTIFICATE", ca.Raw), "ca.key": private(caKey), "tls.crt": encode("CERTIFICATE", leaf.Raw), "tls.key": private(key)}
}

// certificatesFail: whatever happens to the certificate, pods are refused for
// two seconds at most and none is admitted as it is.
func certificatesFail(t *testing.T, s *shop) {
	const limit = 2 * time.Second
	for _, f := range []struct {
		name string
		fail func()
	}{
		{"the Secret is deleted", func() {
			must(t, s.Objects.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: webhookNS, Name: workloadidentity.CertificateSecret}}))
		}},
		{"the Secret is garbage", func() { s.secret(t, map[string][]byte{"ca.crt": []byte("garbage"), "tls.crt": {0}}) }},
		{"the Secret is empty", func() { s.secret(t, nil) }},
		{"the certificate in the Secret has expired", func() { s.secret(t, expired(t)) }},
		{"the API server trusts nobody", func() {
			s.patch(t, s.configuration(), `[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]`)
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			stop := s.admissions(t)
			before, err := s.certificates(t.Context())
			must(t, err)
			f.fail()
			s.certified(t)
			after, err := s.certificates(t.Context())
			must(t, err)
			t.Logf("the certificate is another one: %v", string(after.Data["tls.crt"]) != string(before.Data["tls.crt"]))
			// All replicas and the API server have heard of it.
			s.lasts(t, time.Second)
			judgeAdmissions(t, stop(), limit)
		})
	}
}

// certified waits until the API server trusts what the Secret holds, which is
// good for a while, and pods are admitted.
func (s *shop) certified(t *testing.T) {
	t.Helper()
	until(t, 20*time.Second, "the certificate is in order", func(ctx context.Context) error {
		o, err := s.certificates(ctx)
		if err != nil {
			return err
		}
		block, _ := pem.Decode(o.Data["tls.crt"])
		if block == nil {
			return fmt.Errorf("the Secret holds %d members and no certificate", len(o.Data))
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		var c admissionv1.MutatingWebhookConfiguration
		if err := s.Objects.Get(ctx, client.ObjectKey{Name: workloadidentity.WebhookConfiguration}, &c); err != nil {
			return err
		}
		roots.AppendCertsFromPEM(c.Webhooks[0].ClientConfig.CABundle)
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: workloadidentity.WebhookService + "." + webhookNS + ".svc", Roots: roots, CurrentTime: time.Now().AddDate(0, 6, 0)}); err != nil {
			return err
		}
		p, _, err := s.try(ctx)
		if err == nil && !mutated(p) {
			err = errors.New("a pod is admitted as it is")
		}
		return err
	})
	const metric = "lanyard_webhook_certificate_expiry_timestamp_seconds"
	if got, least := s.counted(t, webhookNS, "8095", metric), 2*float64(time.Now().AddDate(0, 6, 0).Unix()); got < least {
		t.Errorf("the sum of %s is %v: a replica serves a certificate that ends soon", metric, got)
	}
}

// apiServerRestarts while pods are made and tokens are exchanged.
func apiServerRestarts(t *testing.T, s *shop) {
	s.steady = s.watch(t, proxied(labelled("steady", "red", workload("main", "watch", "--pause=200ms"))), "red")
	legacy := s.pod(t, "legacy", "green")
	s.untilTokens(t, 30*time.Second, s.steady, legacy)
	s.since = time.Now()
	stop := s.admissions(t)
	from := time.Now()
	must(t, s.Lab.RestartAPIServer(t.Context()))
	t.Logf("the API server was away for %.1f s", time.Since(from).Seconds())
	// Everything works on what has changed since, although nobody was restarted.
	s.account(t, namespace, "since", "amber")
	since := s.watch(t, proxied(labelled("since", "since", workload("main", "watch", "--pause=200ms"))), "amber")
	sinceLegacy := s.pod(t, "since-legacy", "violet", "--timeout=60s")
	s.untilReady(t, 60*time.Second)
	s.untilTokens(t, 60*time.Second, since, sinceLegacy)
	// The webhook's cache follows again: a change of an annotation counts.
	s.patch(t, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "red"}},
		`[{"op":"add","path":"/metadata/annotations/azure.workload.identity~1service-account-token-expiration","value":"7200"}]`)
	until(t, 10*time.Second, "the webhook sees what has changed", func(ctx context.Context) error {
		p, _, err := s.try(ctx)
		if err != nil {
			return err
		}
		for _, v := range p.Spec.Volumes {
			if v.Projected != nil && strings.HasPrefix(v.Name, workloadidentity.VolumePrefix) {
				if got := *v.Projected.Sources[0].ServiceAccountToken.ExpirationSeconds; got != 7200 {
					return fmt.Errorf("a token lives for %d s", got)
				}
			}
		}
		return nil
	})
	judgeAdmissions(t, stop(), 15*time.Second)
	until(t, 20*time.Second, "the API server answers", s.readAll)
	uninterrupted(t, from, time.Now(), s.steady, legacy)
	s.holds(t, 60*time.Second)
	all, err := s.claims(t.Context(), "")
	must(t, err)
	for i := range all { // nothing was lost, and nothing doubted
		if err := condition(&all[i], lanyard.ConditionReady, metav1.ConditionTrue, ""); err != nil {
			t.Error(err)
		}
	}
	s.remove(t, legacy, since, sinceLegacy)
}
