// Package bed is the place in which package bench measures: real binaries, a
// real API server, stand-ins for Azure, in network namespaces of their own.
//
//	New       API server (bin/kube), stand-in for Entra and ARM
//	NewNode   the same, a node with 110 pods, each with an address and an identity
//	Start     a program in it, with its output in a file
//	Close     nothing of it is left
package bed

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
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	"github.com/lanyard-id/lanyard/internal/bench/load"
	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/bench/standin"
	"github.com/lanyard-id/lanyard/internal/lab/controlplane"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

// Addresses in the bed's own network namespace, as on a lab's node.
var (
	nodeAddress = netip.MustParseAddr("10.250.0.1")
	nodeGateway = netip.MustParseAddr("10.250.0.254") // nobody: what is sent there is lost
	podGateway  = netip.MustParseAddr("10.244.0.1")

	// Metadata is where pods find the metadata service.
	Metadata = netip.MustParseAddrPort("169.254.169.254:80")
)

// BarePort is where the bare server listens.
const BarePort = 2600

const (
	apiPort    = 6443
	cloudPort  = 8443
	agentPort  = 2579 // nmi's own default
	probePort  = 8085 // nmi's own default
	micProbes  = 8080 // mic's own default
	cloudDelay = 100 * time.Millisecond
	armDelay   = 2 * time.Second
)

// A Config is where the programs are and how much is to be done. All but Quick
// must be set.
type Config struct {
	Bin   string   // directory of kube, nmi, mic, webhook, proxy, kwok and the rest
	Self  []string // command line of this program that calls standin.Main
	Quick bool     // shorter runs and smaller clusters
	Step  func(format string, args ...any)
}

// A Bed is a machine with a real API server and a stand-in for the cloud, in a
// network namespace of its own.
type Bed struct {
	Config
	Dir     string // of every file, removed at the end
	NS      *netns.NS
	Control *controlplane.ControlPlane
	Kube    kubernetes.Interface
	Objects client.Client
	MIC     *Child

	config  *rest.Config
	outside *http.Client // reaches into the namespace, knows the cloud's certificate

	ends []func(context.Context) error // what Close does, backwards
}

// New starts all of it. After an error nothing is left.
func New(ctx context.Context, c Config) (_ *Bed, err error) {
	dir, err := os.MkdirTemp("", "lanyard-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	b := &Bed{Config: c, Dir: dir}
	b.End(func(context.Context) error { return os.RemoveAll(dir) })
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close(context.WithoutCancel(ctx)))
		}
	}()
	if b.NS, err = netns.New(); err != nil {
		return nil, err
	}
	b.End(func(context.Context) error { return b.NS.Close() })
	if err := b.NS.Setup(netns.Setup{
		Bridge: "node0", BridgeAddresses: []netip.Prefix{netip.PrefixFrom(nodeAddress, 24)},
		Loopback: []netip.Prefix{netip.PrefixFrom(Metadata.Addr(), 32)}, Gateway: nodeGateway,
		Sysctls: map[string]string{"net/ipv4/ip_forward": "1"},
	}); err != nil {
		return nil, err
	}
	if err := b.NS.Setup(netns.Setup{Bridge: "cni0", BridgeAddresses: []netip.Prefix{netip.PrefixFrom(podGateway, 24)}}); err != nil {
		return nil, err
	}
	if err := b.startCluster(ctx); err != nil {
		return nil, err
	}
	return b, b.startCloud(ctx)
}

// End adds what Close does, before all that was added earlier.
func (b *Bed) End(f func(context.Context) error) { b.ends = append(b.ends, f) }

// Close ends every process and removes every file.
func (b *Bed) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for i := len(b.ends) - 1; i >= 0; i-- {
		errs = append(errs, b.ends[i](ctx))
	}
	b.ends = nil
	return errors.Join(errs...)
}

func (b *Bed) startCluster(ctx context.Context) (err error) {
	b.Step("starting a Kubernetes API server")
	b.Control, err = controlplane.Start(ctx, b.NS, controlplane.Config{
		Kube: filepath.Join(b.Bin, "kube"), Dir: filepath.Join(b.Dir, "kube"), Address: At(apiPort),
		// What is measured has no use for them, and they would share its processors.
		Args: []string{"--no-scheduler", "--no-controller-manager"},
	})
	if err != nil {
		return err
	}
	b.End(b.Control.Stop)
	if b.config, err = clientcmd.BuildConfigFromFlags("", b.Control.Kubeconfig("admin")); err != nil {
		return err
	}
	b.config.QPS, b.config.Dial = -1, b.NS.DialContext
	builtin := rest.CopyConfig(b.config)
	builtin.ContentType = runtime.ContentTypeProtobuf
	if b.Kube, err = kubernetes.NewForConfig(builtin); err != nil {
		return err
	}
	types := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(types), v1.AddToScheme(types)); err != nil {
		return err
	}
	if b.Objects, err = client.New(b.config, client.Options{Scheme: types}); err != nil {
		return err
	}
	return b.applyCRDs(ctx)
}

// applyCRDs installs this version's custom resources and waits until the
// server serves each of them.
func (b *Bed) applyCRDs(ctx context.Context) error {
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
		if err := b.Objects.Create(ctx, u); err != nil {
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
		if err := Until(ctx, 30*time.Second, func() error { return b.Kube.CoreV1().RESTClient().Get().AbsPath(path).Do(ctx).Error() }); err != nil {
			return fmt.Errorf("waiting until %s is served: %w", path, err)
		}
	}
	return nil
}

// Kubeconfig writes one for a new service account, which may do everything but
// stands, unlike an administrator, under the API server's fair queueing.
func (b *Bed) Kubeconfig(ctx context.Context, name string) (string, error) {
	return b.KubeconfigFor(ctx, name, b.config.Host, b.Control.File("ca.crt"))
}

// KubeconfigFor is Kubeconfig for what stands, at another URL and with another
// certificate, in front of the API server.
func (b *Bed) KubeconfigFor(ctx context.Context, name, server, ca string) (string, error) {
	token, err := b.serviceAccount(ctx, name)
	if err != nil {
		return "", fmt.Errorf("making the service account %s: %w", name, err)
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["bench"] = &clientcmdapi.Cluster{Server: server, CertificateAuthority: ca}
	c.AuthInfos["bench"] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "bench"}
	c.CurrentContext = "bench"
	file := filepath.Join(b.Dir, name+".kubeconfig")
	return file, clientcmd.WriteToFile(*c, file)
}

// Certificate are the files of a certificate for the machine's address, that of
// the stand-in for the cloud, and of its key.
func (b *Bed) Certificate() (cert, key string) {
	return filepath.Join(b.Dir, "cloud.crt"), filepath.Join(b.Dir, "cloud.key")
}

// Front returns a handler that passes everything on to the API server.
func (b *Bed) Front() (http.Handler, error) {
	to, err := url.Parse(b.config.Host)
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(b.Control.File("ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport: trusting(pool, b.NS.DialContext).Transport, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
	}, nil
}

// startCloud starts the stand-in for Entra and ARM, with a certificate of its own.
func (b *Bed) startCloud(ctx context.Context) error {
	cert, key := b.Certificate()
	pool, err := writeCertificate(cert, key)
	if err != nil {
		return fmt.Errorf("making the cloud's certificate: %w", err)
	}
	b.outside = trusting(pool, b.NS.DialContext)
	_, err = b.standIn(ctx, b.NS, "cloud", standin.Config{
		Listen: cloudHost(), BaseURL: CloudURL(), Cert: cert, Key: key, Latency: cloudDelay, ARMDelay: armDelay,
	})
	return err
}

// At is a port of the machine, as pods see it.
func At(port uint16) netip.AddrPort { return netip.AddrPortFrom(nodeAddress, port) }

func cloudHost() string { return At(cloudPort).String() }

// CloudURL is the base URL of the stand-in for the cloud.
func CloudURL() string { return "https://" + cloudHost() }

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

// standIn starts one of package standin's servers, which is this program again.
func (b *Bed) standIn(ctx context.Context, ns *netns.NS, kind string, config standin.Config) (*Child, error) {
	c, err := b.StartIn(ns, kind, nil, b.Self[0], append(b.Self[1:len(b.Self):len(b.Self)], config.Args(kind)...)...)
	if err != nil {
		return nil, err
	}
	return c, c.Ready(ctx, 20*time.Second, func() error {
		said, err := os.ReadFile(c.Log)
		if err == nil && !bytes.HasPrefix(said, []byte("listening")) {
			err = errors.New("it does not listen yet")
		}
		return err
	})
}

// StartBare starts, in a namespace, a server that gives one answer to everybody.
func (b *Bed) StartBare(ctx context.Context, ns *netns.NS, at netip.AddrPort, answer load.Answer) (*Child, error) {
	file := filepath.Join(b.Dir, "answer.json")
	if err := (standin.Recorded{Header: answer.Header, Body: answer.Body}).Save(file); err != nil {
		return nil, err
	}
	return b.standIn(ctx, ns, "bare", standin.Config{Listen: at.String(), Answer: file})
}

// get reads a URL inside the namespace.
func (b *Bed) get(ctx context.Context, url string) ([]byte, error) {
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

// Post sends a form inside the namespace.
func (b *Bed) Post(ctx context.Context, to string, form url.Values) error {
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
func (b *Bed) active(ctx context.Context, c *Child, port int) error {
	return c.Ready(ctx, time.Minute, func() error {
		body, err := b.get(ctx, fmt.Sprintf("http://%s/healthz", At(uint16(port))))
		if err == nil && strings.TrimSpace(string(body)) != "Active" {
			err = fmt.Errorf("/healthz says %q", body)
		}
		return err
	})
}

// Stats tells what the stand-in for the cloud was asked for.
func (b *Bed) Stats(ctx context.Context) (standin.Stats, error) {
	var s standin.Stats
	body, err := b.get(ctx, CloudURL()+standin.StatsPath)
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	return s, err
}

// StartMIC starts mic with its default flags and waits until it leads.
func (b *Bed) StartMIC(ctx context.Context) (*Child, error) {
	b.Step("starting mic")
	kubeconfig, err := b.Kubeconfig(ctx, "mic")
	if err != nil {
		return nil, err
	}
	endpoints := filepath.Join(b.Dir, "endpoints.json")
	text := fmt.Sprintf(`{"activeDirectoryEndpoint":%q,"resourceManagerEndpoint":%q}`, CloudURL()+"/", CloudURL())
	if err := os.WriteFile(endpoints, []byte(text), 0o600); err != nil {
		return nil, err
	}
	b.MIC, err = b.Start("mic", []string{
		"CLOUD=AzureStackCloud", "AZURE_ENVIRONMENT_FILEPATH=" + endpoints, "TENANT_ID=" + standin.Tenant, "CLIENT_ID=" + standin.ClientID(99999),
		"CLIENT_SECRET=bench", "SUBSCRIPTION_ID=" + standin.Subscription, "RESOURCE_GROUP=" + standin.Group, "VM_TYPE=vmss",
		"SSL_CERT_FILE=" + filepath.Join(b.Dir, "cloud.crt"), "MIC_POD_NAMESPACE=default",
	}, filepath.Join(b.Bin, "mic"), "--kubeconfig="+kubeconfig)
	if err != nil {
		return nil, err
	}
	return b.MIC, b.active(ctx, b.MIC, micProbes)
}

// Idle waits until the process has stopped working.
func (b *Bed) Idle(ctx context.Context, pid int) error {
	const window, most = 500 * time.Millisecond, 10 * time.Millisecond
	deadline := time.Now().Add(30 * time.Second)
	before, err := meter.CPU(pid)
	for err == nil {
		if err = Pause(ctx, window); err != nil {
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
