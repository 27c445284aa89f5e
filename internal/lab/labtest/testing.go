package labtest

import (
	"context"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// eventuallyLimit is how long Eventually waits when its context has no deadline.
const eventuallyLimit = 30 * time.Second

// Eventually calls check every 20 ms until it returns nil. It fails the test
// with the last error when ctx ends, or after 30 s if ctx has no deadline.
// Like t.Fatal it must be called from the test's own goroutine.
func Eventually(t testing.TB, ctx context.Context, check func() error) { //nolint:revive // a test helper's first argument is t
	t.Helper()
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, eventuallyLimit)
		defer cancel()
	}
	if err := poll(ctx, 20*time.Millisecond, check); err != nil {
		t.Fatalf("labtest: it did not happen: %v", err)
	}
}

// poll calls check until it returns nil or ctx ends; then it returns the last
// error of check.
func poll(ctx context.Context, interval time.Duration, check func() error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	started := time.Now()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %.1f s (%w): %w", time.Since(started).Seconds(), context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}

// Namespace makes a namespace for one test and returns its name. Pods can be
// made in it at once: its default ServiceAccount exists. It is deleted when the
// test ends, without waiting for its objects to go.
func (c *Cluster) Namespace(t testing.TB) string {
	t.Helper()
	client, err := kubernetes.NewForConfig(c.Config(t))
	if err != nil {
		t.Fatalf("labtest: making a client: %v", err)
	}
	namespace, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("labtest: making a namespace: %v", err)
	}
	t.Cleanup(func() {
		// t.Context has ended by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		if err := client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("labtest: deleting the namespace: %v", err)
		}
	})
	Eventually(t, t.Context(), func() error {
		_, err := client.CoreV1().ServiceAccounts(namespace.Name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	return namespace.Name
}

// CABundle returns what the API server needs to trust s: the caBundle of a
// webhook configuration whose clientConfig.url is below s.URL. The API server
// listens on the same loopback interface, so it reaches a server made by
// httptest.NewTLSServer.
func CABundle(s *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}
