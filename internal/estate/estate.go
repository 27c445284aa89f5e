// Package estate puts a cloud beside a cluster and Lanyard on it, as one value
// with Stop: what a company that runs Kubernetes and Azure has, on one machine.
//
//	Up
//	   1 OpenCloud     a tenant, a subscription, identities, a vault
//	   2 lab.Start     etcd, API server, controllers, a node, in namespaces of their own
//	   3 serve         Azure's hosts at 10.250.0.10:443, the node's IMDS at 169.254.169.254:80, a proxy on the host
//	   4 install       images, CRDs, mic, nmi, webhook
//	   5 publish       what points kubectl, az and the SDKs at it
package estate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/control"
	"github.com/lanyard-id/lanyard/internal/lab"
)

// A Config describes an estate. StateDir, BinDir and Self must be set.
type Config struct {
	StateDir string   // absolute; made if missing; one estate at a time
	BinDir   string   // holds kube, pause, mic, nmi, webhook and workload
	Self     []string // command line of this program that calls lab.Main

	// ProcessNode simulates the node: pods are local processes.
	ProcessNode bool
	// APIServer: an empty Issuer and AuditPolicy mean the estate's own. The
	// local cloud serves the documents of an issuer, which must be an https URL;
	// those of one in blob storage are what somebody publishes there.
	APIServer lab.APIServer
	// IssuerFolder is what the local cloud serves at the issuer's URL: documents
	// that somebody publishes there. Empty means those of the API server, live.
	IssuerFolder string
	// CloudSettings are how honest the cloud is about time and limits; the
	// zero value is quick. Cloud.SetSettings changes them later.
	CloudSettings control.Settings

	Step   func(format string, args ...any) // tells what is being done now; nil means silence
	Logger *slog.Logger                     // nil means slog.Default
}

// An Estate is a running cluster with a cloud beside it.
type Estate struct {
	Lab     *lab.Lab
	Cloud   *Cloud
	Objects client.WithWatch // reads and writes any kind on the cluster
	Issuer  string           // of the cluster's service-account tokens
	Proxy   string           // address of the CONNECT proxy on the host

	config Config
}

// Up starts an estate and returns when pods can have identities. After an
// error, or when ctx ends meanwhile, nothing is left running.
func Up(ctx context.Context, config Config) (*Estate, error) {
	if config.Step == nil {
		config.Step = func(string, ...any) {}
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	e := &Estate{config: config, Issuer: config.APIServer.Issuer}
	if err := e.up(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
		return nil, errors.Join(err, e.Stop(context.WithoutCancel(ctx)))
	}
	return e, nil
}

func (e *Estate) up(ctx context.Context) error {
	// A second estate on the same state must be told before anything is opened.
	if err := lab.Free(e.config.StateDir); err != nil {
		return err
	}
	if e.Issuer == "" {
		e.Issuer = defaultIssuer
	}
	e.config.Step("opening the local cloud: a tenant, a subscription, managed identities, a Key Vault")
	issuer := &publisher{folder: e.config.IssuerFolder}
	host, handler, err := issuer.serve(e.Issuer)
	if err != nil {
		return err
	}
	served := map[string]http.Handler{host: handler}
	if strings.HasSuffix(host, "."+azure.SuffixBlob) {
		served = nil // it is a storage account of the cloud's
	}
	e.Cloud, err = OpenCloud(ctx, CloudConfig{
		StateDir: filepath.Join(e.config.StateDir, "cloud"),
		Hosts:    served,
		Settings: e.config.CloudSettings,
		Logger:   e.config.Logger,
	})
	if err != nil {
		return err
	}
	if err := e.startCluster(ctx, host); err != nil {
		return err
	}
	issuer.from(e.Lab.Client.Discovery().RESTClient())
	proxy, err := e.serve(ctx)
	if err != nil {
		return err
	}
	if err := e.install(ctx); err != nil {
		return err
	}
	e.Proxy = proxy.String()
	return e.publish(proxy)
}

func (e *Estate) startCluster(ctx context.Context, issuerHost string) error {
	e.config.Step("starting Kubernetes")
	settings := e.config.APIServer
	settings.Issuer = e.Issuer
	if settings.AuditPolicy == "" {
		file, err := writeAuditPolicy(e.config.StateDir)
		if err != nil {
			return err
		}
		settings.AuditPolicy = file
	}
	var err error
	e.Lab, err = lab.Start(ctx, lab.Config{
		StateDir: e.config.StateDir, BinDir: e.config.BinDir, Self: e.config.Self, ProcessNode: e.config.ProcessNode,
		Node: lab.NodeSpec{
			Name:       nodeName,
			ProviderID: "azure://" + e.Cloud.MachineID,
			Labels:     map[string]string{"kubernetes.azure.com/agentpool": "nodepool1", "kubernetes.azure.com/cluster": nodeResourceGroup},
		},
		Hosts:     append(e.Cloud.Hosts(), issuerHost),
		APIServer: settings,
		Step:      e.config.Step,
		Logger:    e.config.Logger,
	})
	if err != nil {
		return err
	}
	scheme, err := scheme()
	if err != nil {
		return err
	}
	e.Objects, err = client.NewWithWatch(e.Lab.RESTConfig(), client.Options{Scheme: scheme})
	return err
}

// serve opens the cloud's doors: for pods and node inside, for people outside.
func (e *Estate) serve(ctx context.Context) (proxy net.Addr, err error) {
	e.config.Step("serving Azure's hosts to pods and through a proxy on the host")
	tls, err := e.Lab.Netns.Listen(ctx, "tcp", netip.AddrPortFrom(lab.CloudAddress, 443).String())
	if err != nil {
		return nil, fmt.Errorf("listening for Azure's hosts: %w", err)
	}
	e.Lab.Serve(func(ctx context.Context) error { return e.Cloud.Serve(ctx, tls) })
	metadata, err := e.Lab.Netns.Listen(ctx, "tcp", netip.AddrPortFrom(lab.MetadataAddress, 80).String())
	if err != nil {
		return nil, fmt.Errorf("listening for the metadata service: %w", err)
	}
	e.Lab.Serve(func(ctx context.Context) error {
		return serveHTTP(ctx, metadata, e.Cloud.Metadata(e.Cloud.MachineID))
	})
	outside, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the proxy: %w", err)
	}
	e.Lab.Serve(func(ctx context.Context) error { return e.Cloud.ServeProxy(ctx, outside, nil) })
	return outside.Addr(), nil
}

// serveHTTP answers until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// publish tells other processes how to use the estate: see ReadStatus.
func (e *Estate) publish(proxy net.Addr) error {
	env, err := e.Cloud.Files(filepath.Join(e.config.StateDir, "cloud"), proxy)
	if err != nil {
		return err
	}
	tools, err := linkKubectl(e.config.StateDir, e.config.BinDir)
	if err != nil {
		return err
	}
	status := Status{
		Node: nodeName, Kubeconfig: e.Lab.Kubeconfig, Issuer: e.Issuer, Vault: e.Cloud.VaultURL, Proxy: proxy.String(),
		Env: append(Env{{"KUBECONFIG", e.Lab.Kubeconfig}, {"PATH", tools}}, env...),
	}
	text, err := json.Marshal(status)
	if err != nil {
		return err
	}
	return e.Lab.Publish(statusKey, string(text))
}

// linkKubectl makes a directory with a kubectl of the cluster's version.
func linkKubectl(stateDir, binDir string) (string, error) {
	tools := filepath.Join(stateDir, toolsDir)
	if err := os.MkdirAll(tools, 0o700); err != nil {
		return "", err
	}
	link := filepath.Join(tools, "kubectl")
	if err := removeLink(link); err != nil {
		return "", err
	}
	return tools, os.Symlink(filepath.Join(binDir, "kube"), link)
}

// Simulated tells whether the node is a simulation whose pods are local
// processes.
func (e *Estate) Simulated() bool { return e.config.ProcessNode }

// As returns a client that acts as a user of the cluster, with that user's rights.
func (e *Estate) As(user string) (client.Client, error) {
	config := rest.CopyConfig(e.Lab.RESTConfig())
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	return client.New(config, client.Options{Scheme: e.Objects.Scheme()})
}

// Wait returns nil when ctx ends, and an error when a part ends by itself.
func (e *Estate) Wait(ctx context.Context) error { return e.Lab.Wait(ctx) }

// Stop ends everything and removes what Up made, but for what the cloud
// holds. It may be called again.
func (e *Estate) Stop(ctx context.Context) error {
	var err error
	if e.Lab != nil {
		err = errors.Join(e.Lab.Stop(ctx), removeOwn(e.config.StateDir))
	}
	if e.Cloud != nil {
		err = errors.Join(err, e.Cloud.Close())
		e.Cloud = nil
	}
	return err
}

// Dynamic returns a client for kinds that are known by name only.
func (e *Estate) dynamic() (dynamic.Interface, error) {
	return dynamic.NewForConfig(e.Lab.RESTConfig())
}
