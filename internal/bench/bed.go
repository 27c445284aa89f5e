package bench

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
	"github.com/lanyard-id/lanyard/internal/lab/controlplane"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// Addresses in the bed's own network namespace, as on a lab's node.
var (
	nodeAddress = netip.MustParseAddr("10.250.0.1")
	nodeGateway = netip.MustParseAddr("10.250.0.254") // nobody: what is sent there is lost
	podGateway  = netip.MustParseAddr("10.244.0.1")
	metadata    = netip.MustParseAddrPort("169.254.169.254:80")
)

const (
	apiPort    = 6443
	cloudPort  = 8443
	barePort   = 2600
	agentPort  = 2579 // nmi's own default
	probePort  = 8085 // nmi's own default
	micProbes  = 8080 // mic's own default
	cloudDelay = 100 * time.Millisecond
	armDelay   = 2 * time.Second
)

// A bed is a machine with a real API server and a stand-in for the cloud, in a
// network namespace of its own.
type bed struct {
	*Runner
	dir     string
	ns      *netns.NS
	control *controlplane.ControlPlane
	config  *rest.Config
	kube    kubernetes.Interface
	objects client.Client
	mic     *child
	outside *http.Client // reaches into the namespace, knows the cloud's certificate

	ends []func(context.Context) error // what Close does, backwards
}

// newBed starts all of it. After an error nothing is left.
func (r *Runner) newBed(ctx context.Context) (_ *bed, err error) {
	dir, err := os.MkdirTemp("", "lanyard-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	b := &bed{Runner: r, dir: dir}
	b.end(func(context.Context) error { return os.RemoveAll(dir) })
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close(context.WithoutCancel(ctx)))
		}
	}()
	if b.ns, err = netns.New(); err != nil {
		return nil, err
	}
	b.end(func(context.Context) error { return b.ns.Close() })
	if err := b.ns.Setup(netns.Setup{
		Bridge: "node0", BridgeAddresses: []netip.Prefix{netip.PrefixFrom(nodeAddress, 24)},
		Loopback: []netip.Prefix{netip.PrefixFrom(metadata.Addr(), 32)}, Gateway: nodeGateway,
		Sysctls: map[string]string{"net/ipv4/ip_forward": "1"},
	}); err != nil {
		return nil, err
	}
	if err := b.ns.Setup(netns.Setup{Bridge: "cni0", BridgeAddresses: []netip.Prefix{netip.PrefixFrom(podGateway, 24)}}); err != nil {
		return nil, err
	}
	if err := b.startCluster(ctx); err != nil {
		return nil, err
	}
	return b, b.startCloud(ctx)
}

func (b *bed) end(f func(context.Context) error) { b.ends = append(b.ends, f) }

// Close ends every process and removes every file.
func (b *bed) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for i := len(b.ends) - 1; i >= 0; i-- {
		errs = append(errs, b.ends[i](ctx))
	}
	b.ends = nil
	return errors.Join(errs...)
}

func (b *bed) startCluster(ctx context.Context) (err error) {
	b.step("starting a Kubernetes API server")
	b.control, err = controlplane.Start(ctx, b.ns, controlplane.Config{
		Kube: filepath.Join(b.Bin, "kube"), Dir: filepath.Join(b.dir, "kube"), Address: netip.AddrPortFrom(nodeAddress, apiPort),
		// What is measured has no use for them, and they would share its processors.
		Args: []string{"--no-scheduler", "--no-controller-manager"},
	})
	if err != nil {
		return err
	}
	b.end(b.control.Stop)
	if b.config, err = clientcmd.BuildConfigFromFlags("", b.control.Kubeconfig("admin")); err != nil {
		return err
	}
	b.config.QPS, b.config.Dial = -1, b.ns.DialContext
	builtin := rest.CopyConfig(b.config)
	builtin.ContentType = runtime.ContentTypeProtobuf
	if b.kube, err = kubernetes.NewForConfig(builtin); err != nil {
		return err
	}
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), v1.AddToScheme(types)); err != nil {
		return err
	}
	if b.objects, err = client.New(b.config, client.Options{Scheme: types}); err != nil {
		return err
	}
	return b.applyCRDs(ctx)
}

// applyCRDs installs this version's custom resources and waits until the
// server serves each of them.
func (b *bed) applyCRDs(ctx context.Context) error {
	crds, err := deploy.CRDs()
	if err != nil {
		return err
	}
	paths := make([]string, len(crds))
	for i, text := range crds {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &u.Object); err != nil {
			return fmt.Errorf("reading a CRD: %w", err)
		}
		if err := b.objects.Create(ctx, u); err != nil {
			return fmt.Errorf("creating the CRD %s: %w", u.GetName(), err)
		}
		var version string
		if versions, _, _ := unstructured.NestedSlice(u.Object, "spec", "versions"); len(versions) > 0 {
			version, _, _ = unstructured.NestedString(versions[0].(map[string]any), "name")
		}
		plural, group, _ := strings.Cut(u.GetName(), ".")
		paths[i] = "/apis/" + group + "/" + version + "/" + plural
	}
	for _, path := range paths {
		if err := until(ctx, 30*time.Second, func() error { return b.kube.CoreV1().RESTClient().Get().AbsPath(path).Do(ctx).Error() }); err != nil {
			return fmt.Errorf("waiting until %s is served: %w", path, err)
		}
	}
	return nil
}

// kubeconfig writes one for a new service account, which may do everything but
// stands, unlike an administrator, under the API server's fair queueing.
func (b *bed) kubeconfig(ctx context.Context, name string) (string, error) {
	token, err := b.serviceAccount(ctx, name)
	if err != nil {
		return "", fmt.Errorf("making the service account %s: %w", name, err)
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["bench"] = &clientcmdapi.Cluster{Server: b.config.Host, CertificateAuthority: b.control.File("ca.crt")}
	c.AuthInfos["bench"] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "bench"}
	c.CurrentContext = "bench"
	file := filepath.Join(b.dir, name+".kubeconfig")
	return file, clientcmd.WriteToFile(*c, file)
}

// startCloud starts the stand-in for Entra and ARM, with a certificate of its own.
func (b *bed) startCloud(ctx context.Context) error {
	cert, key := filepath.Join(b.dir, "cloud.crt"), filepath.Join(b.dir, "cloud.key")
	pool, err := writeCertificate(cert, key)
	if err != nil {
		return fmt.Errorf("making the cloud's certificate: %w", err)
	}
	b.outside = trusting(pool, b.ns.DialContext)
	_, err = b.standIn(ctx, "cloud", standin.Config{
		Listen: netip.AddrPortFrom(nodeAddress, cloudPort).String(), BaseURL: cloudURL(), Cert: cert, Key: key, Latency: cloudDelay, ARMDelay: armDelay,
	})
	return err
}

func cloudHost() string { return netip.AddrPortFrom(nodeAddress, cloudPort).String() }
func cloudURL() string  { return "https://" + cloudHost() }

func writeCertificate(certFile, keyFile string) (*x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{nodeAddress.AsSlice()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool, errors.Join(os.WriteFile(certFile, text, 0o600), os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600))
}

// A child is a process inside the namespace.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string
	over chan struct{} // closed when it has ended
}

// PID is the process's number.
func (c *child) PID() int { return c.cmd.Process.Pid }

// start starts a program inside the namespace, with its output in a file.
func (b *bed) start(name string, env []string, program string, args ...string) (*child, error) {
	log, err := os.CreateTemp(b.dir, name+"-*.log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c := &child{name: name, cmd: exec.Command(program, args...), log: log.Name(), over: make(chan struct{})}
	c.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}, env...)
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := b.ns.Start(c.cmd); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		defer close(c.over)
		_ = c.cmd.Wait() // how it ended is in its log
	}()
	b.end(c.stop)
	return c, nil
}

// stop ends the process. It may be called again.
func (c *child) stop(ctx context.Context) error {
	if id, err := process.Find(c.PID()); err == nil {
		if err := id.End(ctx, 10*time.Second); err != nil {
			return fmt.Errorf("ending %s: %w", c.name, err)
		}
	}
	<-c.over
	return nil
}

// ready waits until check succeeds, or the process ends.
func (c *child) ready(ctx context.Context, limit time.Duration, check func() error) error {
	err := until(ctx, limit, func() error {
		select {
		case <-c.over:
			return fatal{errors.New("it has ended")}
		default:
			return check()
		}
	})
	if err != nil {
		return fmt.Errorf("%s is not ready: %w; the last it said:\n%s", c.name, err, process.Tail(c.log, 5))
	}
	return nil
}

// standIn starts one of package standin's servers, which is this program again.
func (b *bed) standIn(ctx context.Context, kind string, config standin.Config) (*child, error) {
	c, err := b.start(kind, nil, b.Self[0], append(b.Self[1:len(b.Self):len(b.Self)], config.Args(kind)...)...)
	if err != nil {
		return nil, err
	}
	return c, c.ready(ctx, 20*time.Second, func() error {
		said, err := os.ReadFile(c.log)
		if err == nil && !bytes.HasPrefix(said, []byte("listening")) {
			err = errors.New("it does not listen yet")
		}
		return err
	})
}

// get reads a URL inside the namespace.
func (b *bed) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := b.outside.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %.200s", url, res.Status, body)
	}
	return body, err
}

// post sends a form inside the namespace.
func (b *bed) post(ctx context.Context, to string, form url.Values) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := b.outside.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", to, res.Status)
	}
	return nil
}

// active waits for v1's word for "ready".
func (b *bed) active(ctx context.Context, c *child, port int) error {
	return c.ready(ctx, time.Minute, func() error {
		body, err := b.get(ctx, fmt.Sprintf("http://%s/healthz", netip.AddrPortFrom(nodeAddress, uint16(port))))
		if err == nil && strings.TrimSpace(string(body)) != "Active" {
			err = fmt.Errorf("/healthz says %q", body)
		}
		return err
	})
}

func (b *bed) stats(ctx context.Context) (standin.Stats, error) {
	var s standin.Stats
	body, err := b.get(ctx, cloudURL()+standin.StatsPath)
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s, err
}

// startMIC starts mic with its default flags and waits until it leads.
func (b *bed) startMIC(ctx context.Context) (*child, error) {
	b.step("starting mic")
	kubeconfig, err := b.kubeconfig(ctx, "mic")
	if err != nil {
		return nil, err
	}
	endpoints := filepath.Join(b.dir, "endpoints.json")
	text := fmt.Sprintf(`{"activeDirectoryEndpoint":%q,"resourceManagerEndpoint":%q}`, cloudURL()+"/", cloudURL())
	if err := os.WriteFile(endpoints, []byte(text), 0o600); err != nil {
		return nil, err
	}
	b.mic, err = b.start("mic", []string{
		"CLOUD=AzureStackCloud", "AZURE_ENVIRONMENT_FILEPATH=" + endpoints, "TENANT_ID=" + standin.Tenant, "CLIENT_ID=" + standin.ClientID(99999),
		"CLIENT_SECRET=bench", "SUBSCRIPTION_ID=" + standin.Subscription, "RESOURCE_GROUP=" + standin.Group, "VM_TYPE=vmss",
		"SSL_CERT_FILE=" + filepath.Join(b.dir, "cloud.crt"), "MIC_POD_NAMESPACE=default",
	}, filepath.Join(b.Bin, "mic"), "--kubeconfig="+kubeconfig)
	if err != nil {
		return nil, err
	}
	return b.mic, b.active(ctx, b.mic, micProbes)
}

// idle waits until the process has stopped working.
func (b *bed) idle(ctx context.Context, pid int) error {
	const window, most = 500 * time.Millisecond, 10 * time.Millisecond
	deadline := time.Now().Add(30 * time.Second)
	before, err := meter.CPU(pid)
	for err == nil {
		if err = pause(ctx, window); err != nil {
			break
		}
		var now time.Duration
		if now, err = meter.CPU(pid); err == nil && now-before <= most {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the process does not come to rest within 30 s")
		}
		before = now
	}
	return err
}

// endChild stops a process at once; what was said of it stays.
func endChild(ctx context.Context, c *child) error {
	if err := c.cmd.Process.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
