package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/lanyard-id/lanyard/internal/lab/image"
)

// writeKubeconfig writes the administrator's kubeconfig for use on the host,
// where the API server is at address. Its certificate is good for 127.0.0.1.
func (l *Lab) writeKubeconfig(address net.Addr) (*rest.Config, error) {
	cfg, err := clientcmd.LoadFromFile(l.control.Kubeconfig("admin"))
	if err != nil {
		return nil, fmt.Errorf("reading the administrator's kubeconfig: %w", err)
	}
	for _, c := range cfg.Clusters {
		c.Server = "https://" + address.String()
	}
	content, err := clientcmd.Write(*cfg)
	if err != nil {
		return nil, fmt.Errorf("writing the kubeconfig: %w", err)
	}
	l.Kubeconfig = l.claim.path("kubeconfig")
	if err := writeFile(l.Kubeconfig, content); err != nil {
		return nil, fmt.Errorf("writing the kubeconfig: %w", err)
	}
	rc, err := clientcmd.RESTConfigFromKubeConfig(content)
	if err != nil {
		return nil, err
	}
	rc.QPS = -1 // the server protects itself
	return rc, nil
}

// waitNode waits until the node can run pods.
func (l *Lab) waitNode(ctx context.Context) error {
	nodes := cache.NewListWatchFromClient(l.Client.CoreV1().RESTClient(), "nodes", "",
		fields.OneTermEqualSelector("metadata.name", l.cfg.Node.Name))
	last := "it has not registered"
	_, err := watchtools.UntilWithSync(ctx, nodes, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		n, ok := e.Object.(*corev1.Node)
		if !ok {
			return false, nil
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				last = c.Message
				return c.Status == corev1.ConditionTrue, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("waiting for node %s to be ready (%s): %w", l.cfg.Node.Name, last, err)
	}
	return nil
}

// LoadImages builds images and adds them to the node.
func (l *Lab) LoadImages(ctx context.Context, images ...image.Image) error {
	for _, i := range images {
		if l.process != nil {
			l.process.AddImage(i)
			continue
		}
		if err := l.loadImage(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) loadImage(ctx context.Context, i image.Image) error {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := i.Write(w)
		w.CloseWithError(err)
		written <- err
	}()
	err := l.real.Import(ctx, r)
	r.CloseWithError(io.ErrClosedPipe) // ends Write should Import have failed
	if buildErr := <-written; buildErr != nil && !errors.Is(buildErr, io.ErrClosedPipe) {
		return buildErr // the cause: what was imported was cut off
	}
	return err
}
