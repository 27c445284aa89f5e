package probe

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// Without the admission policy the controller's right to make tokens is that of
// the whole cluster; somebody has to be told.
func TestARightToAnyTokenIsTold(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts"}, "app", errors.New("the policy says no"))
	for name, tc := range map[string]struct {
		answers []error // of the API server, one an attempt
		asked   int
		told    int
	}{
		"the policy is in force":                        {[]error{forbidden, forbidden, forbidden}, 1, 0},
		"the policy is not there":                       {[]error{nil, nil, nil}, 1, 1},
		"an API server that is away is asked once more": {[]error{errors.New("away"), nil, nil}, 2, 1},
		"an API server that is away, and then forbids":  {[]error{errors.New("away"), errors.New("away"), forbidden}, 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			now, asked := time.Unix(1800000000, 0), 0
			c := &Controller{
				Now: func() time.Time { return now }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
				Client: fake.NewClientBuilder().WithInterceptorFuncs(interceptor.Funcs{
					SubResourceCreate: func(_ context.Context, _ client.Client, sub string, _ client.Object, o client.Object, _ ...client.SubResourceCreateOption) error {
						if spec := o.(*authenticationv1.TokenRequest).Spec; sub != "token" || spec.Audiences[0] != unwanted || *spec.ExpirationSeconds != 600 {
							t.Errorf("%s: %+v", sub, spec)
						}
						asked++
						return tc.answers[asked-1]
					},
				}).Build(),
			}
			for range tc.answers {
				c.checkPinned(t.Context(), &corev1.ServiceAccount{})
			}
			if told := strings.Count(log.String(), "federation.lanyard.id"); asked != tc.asked || told != tc.told {
				t.Errorf("asked %d times and told %d times, want %d and %d", asked, told, tc.asked, tc.told)
			}
			if tc.told == 1 {
				now, asked = now.Add(pinInterval), 1
				c.checkPinned(t.Context(), &corev1.ServiceAccount{})
				if strings.Count(log.String(), "federation.lanyard.id") != 2 {
					t.Error("after an hour it is not told again")
				}
			}
		})
	}
}
