package caller_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/nmi/caller"
)

var cluster = labtest.Cluster{}

func TestATokenSaysWhoseItIs(t *testing.T) {
	client, err := kubernetes.NewForConfig(cluster.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	namespace := cluster.Namespace(t)
	accounts := client.CoreV1().ServiceAccounts(namespace)
	if _, err := accounts.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "driver"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	bearer := func(audience string) string {
		t.Helper()
		r, err := accounts.CreateToken(t.Context(), "driver", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status.Token
	}
	now, failed := time.Now(), 0
	r := &caller.Reviewer{API: client.AuthenticationV1().RESTClient(), Audience: "lanyard-nmi", Failed: func() { failed++ }, Now: func() time.Time { return now }}
	own := bearer("lanyard-nmi")
	user, node, err := r.Review(t.Context(), own)
	if want := "system:serviceaccount:" + namespace + ":driver"; err != nil || user != want || node != "" {
		t.Errorf("got %q, %q, %v; want %q", user, node, err, want)
	}
	for name, foreign := range map[string]string{"of another audience": bearer("https://kubernetes.default.svc"), "of nobody": "x.y.z"} {
		if user, _, err := r.Review(t.Context(), foreign); err == nil || !strings.Contains(err.Error(), "not valid for the audience lanyard-nmi") {
			t.Errorf("a token %s: %q, %v", name, user, err)
		}
	}
	if err := accounts.Delete(t.Context(), "driver", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Review(t.Context(), own); err != nil {
		t.Errorf("asked again within seconds: %v", err)
	}
	labtest.Eventually(t, t.Context(), func() error { // the API server has a cache, too
		now = now.Add(11 * time.Second)
		if _, _, err := r.Review(t.Context(), own); err != nil {
			return nil
		}
		return errors.New("the token of an account that is gone is taken for good")
	})
	if failed != 0 {
		t.Errorf("%d requests failed", failed)
	}
}
