package nodewatch

import (
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	lanyard "github.com/lanyard-id/lanyard/api/lanyard/v1alpha1"
)

// Scheme has the types that a node agent reads and writes, and no other.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, eventsv1.AddToScheme, authenticationv1.AddToScheme, v1.AddToScheme, lanyard.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// API makes a client of one API group over an HTTP client of kube. The clients
// that client-go and controller-runtime come with link the types of every group
// that Kubernetes has: half of this program, and a third of its memory.
func API(kube *rest.Config, h *http.Client, group schema.GroupVersion) (rest.Interface, error) {
	s, err := Scheme()
	if err != nil {
		return nil, err
	}
	c := rest.CopyConfig(kube)
	c.GroupVersion, c.APIPath = &group, "/apis"
	if group.Group == "" {
		c.APIPath = "/api"
	}
	if group != v1.GroupVersion() && group != lanyard.GroupVersion() { // custom resources are JSON
		c.ContentType = runtime.ContentTypeProtobuf
		c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	c.NegotiatedSerializer = serializer.NewCodecFactory(s).WithoutConversion()
	client, err := rest.RESTClientForConfigAndClient(c, h)
	if err != nil {
		return nil, fmt.Errorf("preparing to talk to the API server: %w", err)
	}
	return client, nil
}
