package journal

import (
	"context"

	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typed "k8s.io/client-go/kubernetes/typed/events/v1"
)

// A Client is the EventWriter of an API server. It needs the verbs create and
// patch on events of events.k8s.io.
type Client struct {
	API    typed.EventsV1Interface
	Failed func() // told of each failed request; may be nil
}

// Create implements EventWriter.
func (c Client) Create(ctx context.Context, e *eventsv1.Event) error {
	_, err := c.API.Events(e.Namespace).Create(ctx, e, metav1.CreateOptions{})
	return c.told(err)
}

// Patch implements EventWriter.
func (c Client) Patch(ctx context.Context, namespace, name string, patch []byte) error {
	_, err := c.API.Events(namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return c.told(err)
}

func (c Client) told(err error) error {
	if err != nil && c.Failed != nil {
		c.Failed()
	}
	return err
}
