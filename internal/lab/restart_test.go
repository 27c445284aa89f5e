package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A lab outlives its API server: objects, tokens and the node are there
// afterwards, and the bundle of keys is what was put there.
func TestAnAPIServerIsRestartedInALabThatGoesOn(t *testing.T) {
	ctx := t.Context()
	cfg := config(filepath.Join(t.TempDir(), "state"), programs(t))
	cfg.ProcessNode = true
	l := start(t, cfg)
	core := l.Client.CoreV1()
	answer, err := core.ServiceAccounts("default").CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := core.ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bundle, err := os.ReadFile(filepath.Join(l.KeyDir(), "sa.pub"))
	if err != nil {
		t.Fatal(err)
	}
	pid := l.control.PID()
	if err := l.RestartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	if l.control.PID() == pid {
		t.Error("it is the same process")
	}
	if after, err := os.ReadFile(filepath.Join(l.KeyDir(), "sa.pub")); err != nil || string(after) != string(bundle) {
		t.Errorf("the bundle has changed: %v", err)
	}
	if _, err := core.ConfigMaps("default").Get(ctx, "kept", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	review, err := l.Client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: answer.Status.Token}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated {
		t.Errorf("a token from before: %+v, %v", review, err)
	}
	// The node goes on: it reports itself again.
	since := time.Now()
	eventually(t, 60*time.Second, func() error {
		lease, err := l.Client.CoordinationV1().Leases("kube-node-lease").Get(ctx, cfg.Node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Before(&metav1.MicroTime{Time: since}) {
			return fmt.Errorf("the node was last seen at %v", lease.Spec.RenewTime)
		}
		return nil
	})
	quick, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := l.Wait(quick); err != nil {
		t.Errorf("a part has ended: %v", err)
	}
}
