// Package processnode is a simulation of a Kubernetes node, for machines
// without root or containerd: it runs each container's program as a local
// process. Tokens, addresses, DNS and the way to the metadata service are as
// on a real node, so that what matters here is really exercised.
//
//	Start ── registers a Node, watches the pods bound to it
//	pod   ── network namespace + cable to cni0 ── volumes ── containers
//	container ── Main: mount, PID, UTS and IPC namespace, files in memory, exec
//	services  ── a listener on each ClusterIP -> a ready endpoint (TCP)
//
// What it lacks: images from anywhere but AddImage, exec and attach, volumes of
// other kinds than those in volumes.go, resource limits, capabilities, seccomp,
// and users where it runs in a user namespace. Everything is root there.
package processnode

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/lanyard-id/lanyard/internal/lab/image"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

// kubeletPort is where the API server asks a node for logs.
const kubeletPort = 10250

// apiClient is who may ask: the name in the API server's client certificate.
const apiClient = "lanyard:kube-apiserver-kubelet-client"

// A Config describes a simulated node. All fields but Labels must be set.
type Config struct {
	Name       string
	Address    netip.Addr
	ProviderID string
	Labels     map[string]string
	Pods       netip.Prefix // the first address is the bridge's
	DNS        netip.Addr   // the cluster's DNS service

	Dir         string // private files, absolute; Stop removes it
	Self        []string
	Client      kubernetes.Interface // administrator
	Net         *netns.NS            // the node's network
	ServingCert string               // the kubelet's; files
	ServingKey  string
	ClientCA    string
	Logger      *slog.Logger
}

// A Node is a running simulation.
type Node struct {
	Config
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done

	mu     sync.Mutex
	images map[string]image.Image
	pods   map[types.UID]*pod
	taken  map[netip.Addr]bool
	last   netip.Addr     // taken last
	all    sync.WaitGroup // pods
}

// Start registers the node and begins to run pods. It returns when the API
// server knows the node as ready. After an error nothing is left but the
// Node object.
func Start(ctx context.Context, c Config) (*Node, error) {
	n := &Node{
		Config: c, done: make(chan struct{}),
		images: map[string]image.Image{}, pods: map[types.UID]*pod{}, taken: map[netip.Addr]bool{},
	}
	bridge := netip.PrefixFrom(c.Pods.Addr().Next(), c.Pods.Bits())
	n.taken[bridge.Addr()] = true
	if err := c.Net.Setup(netns.Setup{
		Bridge: "cni0", BridgeAddresses: []netip.Prefix{bridge}, Loopback: []netip.Prefix{netip.PrefixFrom(c.DNS, 32)},
	}); err != nil {
		return nil, fmt.Errorf("making the pods' network: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := n.register(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("registering node %s: %w", c.Name, err), os.RemoveAll(c.Dir))
	}
	var runCtx context.Context
	runCtx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(n.done)
		n.err = n.run(runCtx)
	}()
	return n, nil
}

// AddImage makes an image known: its binary is what runs.
func (n *Node) AddImage(i image.Image) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.images[i.Ref] = i
}

func (n *Node) image(ref string) (image.Image, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i, ok := n.images[ref]
	return i, ok
}

// Done is closed when the node has ended.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err is why the node has ended; nil before that and after a Stop.
func (n *Node) Err() error {
	select {
	case <-n.done:
		return n.err
	default:
		return nil
	}
}

// Stop ends all pods and removes the node's files.
func (n *Node) Stop(context.Context) error {
	n.cancel()
	<-n.done
	return os.RemoveAll(n.Dir)
}

func (n *Node) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.renew(ctx) })
	g.Go(func() error { return n.serveLogs(ctx) })
	g.Go(func() error { return n.serveServices(ctx) })
	g.Go(func() error { return n.watchPods(ctx) })
	err := g.Wait()
	n.all.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (n *Node) register(ctx context.Context) error {
	labels := map[string]string{corev1.LabelHostname: n.Name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH}
	for k, v := range n.Labels {
		labels[k] = v
	}
	_, err := n.Client.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: labels},
		Spec:       corev1.NodeSpec{ProviderID: n.ProviderID},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	now := metav1.Now()
	status := corev1.NodeStatus{
		Capacity: corev1.ResourceList{
			corev1.ResourceCPU: *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI), corev1.ResourceMemory: resource.MustParse("8Gi"),
			corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("20Gi"),
		},
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.Address.String()}, {Type: corev1.NodeHostName, Address: n.Name}},
		Conditions: []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "ProcessNode", Message: "simulated: containers are local processes",
			LastHeartbeatTime: now, LastTransitionTime: now,
		}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: kubeletPort}},
		NodeInfo: corev1.NodeSystemInfo{
			KubeletVersion: "v1.37.1-lanyard.simulated", ContainerRuntimeVersion: "process://1", OperatingSystem: "linux",
			Architecture: runtime.GOARCH, OSImage: "simulated by the Lanyard lab",
		},
	}
	status.Allocatable = status.Capacity
	// A patch, because controllers write to the new object too.
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		return err
	}
	if _, err := n.Client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		return err
	}
	return n.lease(ctx)
}

// lease is the heartbeat by which the control plane knows that we live.
func (n *Node) lease(ctx context.Context) error {
	leases := n.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(40)
	spec := coordinationv1.LeaseSpec{HolderIdentity: &n.Name, LeaseDurationSeconds: &seconds, RenewTime: &now}
	_, err := leases.Create(ctx, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: n.Name}, Spec: spec}, metav1.CreateOptions{})
	if err == nil {
		return nil
	}
	l, err := leases.Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	l.Spec = spec
	_, err = leases.Update(ctx, l, metav1.UpdateOptions{})
	return err
}

func (n *Node) renew(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := n.lease(ctx); err != nil && ctx.Err() == nil {
				n.Logger.WarnContext(ctx, "renewing the node's lease", "err", err)
			}
		}
	}
}

// watchPods starts a goroutine for each pod that is bound to the node.
func (n *Node) watchPods(ctx context.Context) error {
	bound := cache.NewListWatchFromClient(n.Client.CoreV1().RESTClient(), "pods", corev1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", n.Name))
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: bound, ObjectType: &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { n.see(ctx, o) },
			UpdateFunc: func(_, o any) { n.see(ctx, o) },
			DeleteFunc: func(o any) {
				if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = gone.Obj
				}
				if p, ok := o.(*corev1.Pod); ok {
					n.forget(p.UID)
				}
			},
		},
	})
	controller.RunWithContext(ctx)
	return nil
}

// see compares a pod with what runs.
func (n *Node) see(ctx context.Context, o any) {
	object, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.pods[object.UID]
	ended := object.Status.Phase == corev1.PodSucceeded || object.Status.Phase == corev1.PodFailed
	if p == nil && ctx.Err() == nil && !ended {
		var podCtx context.Context
		p = newPod(n, object)
		podCtx, p.cancel = context.WithCancel(ctx)
		n.pods[object.UID] = p
		n.all.Go(func() { p.run(podCtx) })
	}
	switch {
	case object.DeletionTimestamp == nil:
	case p != nil:
		p.delete(object.DeletionGracePeriodSeconds)
	default:
		n.all.Go(func() { n.remove(ctx, object) })
	}
}

// forget ends a pod whose object has gone.
func (n *Node) forget(uid types.UID) {
	n.mu.Lock()
	p := n.pods[uid]
	delete(n.pods, uid)
	n.mu.Unlock()
	if p != nil {
		p.cancel()
	}
}

// remove tells the API server that nothing of a pod runs any more.
func (n *Node) remove(ctx context.Context, p *corev1.Pod) {
	now := int64(0)
	err := n.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: metav1.NewUIDPreconditions(string(p.UID)),
	})
	if err != nil && ctx.Err() == nil {
		n.Logger.DebugContext(ctx, "removing a pod that has ended", "namespace", p.Namespace, "pod", p.Name, "err", err)
	}
}

// address takes a free address for a pod; give gives it back. They are taken in
// turn: who watches pods may take one that is used again at once for that of
// the pod that had it before.
func (n *Node) address() (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	first := n.Pods.Addr().Next()
	a := n.last
	for range 1 << (n.Pods.Addr().BitLen() - n.Pods.Bits()) {
		if a = a.Next(); !a.IsValid() || !n.Pods.Contains(a.Next()) { // the last one is the broadcast's
			a = first
		}
		if !n.taken[a] {
			n.taken[a], n.last = true, a
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all addresses in %s are taken", n.Pods)
}

func (n *Node) give(a netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.taken, a)
}

// serveLogs answers the API server as a kubelet does, for kubectl logs.
func (n *Node) serveLogs(ctx context.Context) error {
	cert, err := tls.LoadX509KeyPair(n.ServingCert, n.ServingKey)
	if err != nil {
		return fmt.Errorf("reading the kubelet's certificate: %w", err)
	}
	ca, err := os.ReadFile(n.ClientCA)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(ca)
	l, err := n.Net.Listen(ctx, "tcp", netip.AddrPortFrom(n.Address, kubeletPort).String())
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.logs)
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12},
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (n *Node) logs(w http.ResponseWriter, r *http.Request) {
	if name := r.TLS.PeerCertificates[0].Subject.CommonName; name != apiClient {
		http.Error(w, name+" may not read logs", http.StatusForbidden)
		return
	}
	n.mu.Lock()
	var file string
	for _, p := range n.pods {
		if p.object.Namespace == r.PathValue("namespace") && p.object.Name == r.PathValue("pod") {
			for _, c := range append(p.object.Spec.InitContainers, p.object.Spec.Containers...) {
				if c.Name == r.PathValue("container") {
					file = p.log(c.Name)
				}
			}
		}
	}
	n.mu.Unlock()
	b, err := os.ReadFile(filepath.Clean(file))
	if file == "" || err != nil {
		http.Error(w, "this container has no log on the simulated node", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write(b) // the reader may be gone
}
