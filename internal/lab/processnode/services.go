package processnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

// A front is the listener of one port of a Service.
type front struct {
	cancel    context.CancelFunc
	endpoints atomic.Pointer[[]string]
	next      atomic.Uint32
}

// dial connects to the next endpoint.
func (f *front) dial(dial netns.Dialer) netns.Dialer {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		endpoints := *f.endpoints.Load()
		if len(endpoints) == 0 {
			return nil, errors.New("the service has no ready endpoint")
		}
		return dial(ctx, network, endpoints[int(f.next.Add(1))%len(endpoints)])
	}
}

// serveServices makes ClusterIPs reachable over TCP. It stands in for
// kube-proxy, which needs programs that may be missing here.
func (n *Node) serveServices(ctx context.Context) error {
	factory := informers.NewSharedInformerFactory(n.Client, 0)
	services, slices := factory.Core().V1().Services(), factory.Discovery().V1().EndpointSlices()
	changed := make(chan struct{}, 1)
	tell := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(_, o any) { tell(o) }, DeleteFunc: tell}
	for _, informer := range []cache.SharedIndexInformer{services.Informer(), slices.Informer()} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	factory.WaitForCacheSync(ctx.Done())
	fronts := map[string]*front{}
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		svcs, err := services.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		eps, err := slices.Lister().List(labels.Everything())
		if err != nil {
			return err
		}
		wanted := n.backends(svcs, eps)
		for address, f := range fronts {
			if _, ok := wanted[address]; !ok {
				f.cancel()
				delete(fronts, address)
			}
		}
		for address, endpoints := range wanted {
			f := fronts[address]
			if f == nil {
				if f, err = n.open(ctx, address, &all); err != nil {
					n.Logger.WarnContext(ctx, "opening a port of a service", "addr", address, "err", err)
					continue
				}
				fronts[address] = f
			}
			f.endpoints.Store(&endpoints)
		}
	}
}

func (n *Node) open(ctx context.Context, address string, all *sync.WaitGroup) (*front, error) {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	if err := n.Net.Setup(netns.Setup{Loopback: []netip.Prefix{netip.PrefixFrom(ap.Addr(), 32)}}); err != nil {
		return nil, err
	}
	l, err := n.Net.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	f := &front{}
	f.endpoints.Store(&[]string{})
	ctx, f.cancel = context.WithCancel(ctx)
	all.Go(func() {
		if err := netns.Forward(ctx, l, f.dial(n.Net.DialContext), address, n.Logger); err != nil {
			n.Logger.WarnContext(ctx, "serving a port of a service", "addr", address, "err", err)
		}
	})
	return f, nil
}

// backends returns, by ClusterIP and port, the addresses of ready endpoints.
func (n *Node) backends(services []*corev1.Service, slices []*discoveryv1.EndpointSlice) map[string][]string {
	wanted := map[string][]string{}
	for _, s := range services {
		// Cluster DNS listens on its address itself, also for UDP.
		if ip, err := netip.ParseAddr(s.Spec.ClusterIP); err != nil || ip == n.DNS {
			continue
		}
		for _, port := range s.Spec.Ports {
			if port.Protocol != corev1.ProtocolTCP {
				continue
			}
			address := net.JoinHostPort(s.Spec.ClusterIP, fmt.Sprint(port.Port))
			wanted[address] = []string{}
			for _, slice := range slices {
				if slice.Namespace == s.Namespace && slice.Labels[discoveryv1.LabelServiceName] == s.Name {
					wanted[address] = append(wanted[address], ready(slice, port.Name)...)
				}
			}
		}
	}
	return wanted
}

func ready(slice *discoveryv1.EndpointSlice, portName string) []string {
	var found []string
	for _, port := range slice.Ports {
		if port.Port == nil || port.Name == nil || *port.Name != portName {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				found = append(found, net.JoinHostPort(e.Addresses[0], fmt.Sprint(*port.Port)))
			}
		}
	}
	return found
}
