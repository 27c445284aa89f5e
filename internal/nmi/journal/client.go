package journal

import (
	"context"

	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// A Client is the EventWriter of an API server. It needs the verbs create and
// patch on events of events.k8s.io.
type Client struct {
	API    rest.Interface // of events.k8s.io/v1
	Failed func()         // told of each failed request; may be nil
}

// Create implements EventWriter.
func (c Client) Create(ctx context.Context, e *eventsv1.Event) error {
	return c.told(c.API.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error())
}

// Patch implements EventWriter.
func (c Client) Patch(ctx context.Context, namespace, name string, patch []byte) error {
	return c.told(c.API.Patch(types.MergePatchType).Namespace(namespace).Resource("events").Name(name).Body(patch).Do(ctx).Error())
}

func (c Client) told(err error) error {
	if err != nil && c.Failed != nil {
		c.Failed()
	}
	return err
}
