package mutation

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// proxy is the token proxy that a pod gets.
type proxy struct {
	port   int
	images Proxy
	native bool
}

// proxyOf returns the token proxy that a pod asks for, or nil. A pod that asks
// and cannot have it is refused: it would start and reach the node's metadata
// service, which may answer with the token of another identity. A warning
// would come too late.
func proxyOf(pod Pod, cfg Config) (*proxy, error) {
	const annotation = workloadidentity.AnnotationInjectProxySidecar
	if asked, _ := strconv.ParseBool(strings.TrimSpace(pod.Annotations[annotation])); !asked {
		return nil, nil
	}
	port, err := proxyPort(pod)
	switch {
	case err != nil:
		return nil, err
	case pod.hostNetwork:
		return nil, deny("hostNetwork is set to true, cannot inject proxy sidecar: its redirect would catch the whole node. Remove hostNetwork, or remove the annotation %s and let the Azure SDK use the projected token (DefaultAzureCredential or WorkloadIdentityCredential)", annotation)
	case pod.windows:
		return nil, deny("cannot inject proxy sidecar into a Windows pod: the proxy and its redirect are Linux programs. Remove the annotation %s and let the Azure SDK use the projected token (DefaultAzureCredential or WorkloadIdentityCredential)", annotation)
	}
	return &proxy{port: port, images: cfg.Proxy, native: cfg.NativeSidecars}, nil
}

func proxyPort(pod Pod) (int, error) {
	const annotation = workloadidentity.AnnotationProxySidecarPort
	value := pod.Annotations[annotation]
	if value == "" {
		return workloadidentity.DefaultProxyPort, nil
	}
	port, err := strconv.ParseInt(value, 10, 32)
	if err != nil {
		return 0, deny("failed to parse proxy sidecar port: %v: write a number between 1 and 65535 into the annotation %s of the pod, or remove it", err, annotation)
	}
	if port < 1 || port > 65535 {
		return 0, deny("proxy sidecar port %d is out of range: write a number between 1 and 65535 into the annotation %s of the pod, or remove it", port, annotation)
	}
	return int(port), nil
}

// ours reports whether a container is the proxy's.
func (x *proxy) ours(name string) bool {
	return x != nil && (name == workloadidentity.ProxyContainer || name == workloadidentity.ProxyInitContainer)
}

// inject puts the proxy into the pod unless it is there: the redirect first,
// then the sidecar, then the user's init containers, so that none of them
// reaches the node's metadata service. Where Kubernetes has no native sidecars
// nobody answers the init containers, which is an error that they can see.
func (p *plan) inject(pod Pod, x *proxy) ([]Operation, error) {
	if x == nil {
		return nil, nil
	}
	var inits, mains []any
	if !pod.has(workloadidentity.ProxyInitContainer) {
		c, err := p.fill(x.initContainer())
		if err != nil {
			return nil, err
		}
		inits = append(inits, c)
	}
	if !pod.has(workloadidentity.ProxyContainer) {
		c, err := p.fill(x.sidecar())
		if err != nil {
			return nil, err
		}
		if x.native {
			c.RestartPolicy = "Always"
			inits = append(inits, c)
		} else {
			mains = append(mains, c)
		}
	}
	return append(pod.inits.prepend(inits...), pod.mains.prepend(mains...)...), nil
}

// fill gives an injected container what every container gets.
func (p *plan) fill(c injected) (injected, error) {
	c.VolumeMounts = []volumeMount{p.mounted()}
	c.Resources = p.cfg.Proxy.Resources
	for i, v := range p.env {
		if v.Value == "" {
			continue
		}
		c.Env = append(c.Env, v)
		if i < ofAccount {
			p.after.note(c.Name, v)
		}
	}
	return c, nil
}

// injected is a container of the webhook's own.
type injected struct {
	Name            string           `json:"name"`
	Image           string           `json:"image"`
	Args            []string         `json:"args,omitempty"`
	Ports           []map[string]int `json:"ports,omitempty"`
	Env             []envVar         `json:"env,omitempty"`
	Resources       json.RawMessage  `json:"resources,omitempty"`
	VolumeMounts    []volumeMount    `json:"volumeMounts"`
	RestartPolicy   string           `json:"restartPolicy,omitempty"`
	Lifecycle       any              `json:"lifecycle,omitempty"`
	SecurityContext securityContext  `json:"securityContext"`
}

type securityContext struct {
	AllowPrivilegeEscalation bool                `json:"allowPrivilegeEscalation"`
	Capabilities             map[string][]string `json:"capabilities"`
	Privileged               bool                `json:"privileged"`
	ReadOnlyRootFilesystem   bool                `json:"readOnlyRootFilesystem"`
	RunAsNonRoot             bool                `json:"runAsNonRoot"`
	RunAsUser                int                 `json:"runAsUser"`
}

// initContainer redirects the pod's calls to the metadata service. It talks to
// the kernel by netlink alone: NET_ADMIN suffices where v1.6 is privileged.
func (x *proxy) initContainer() injected {
	return injected{
		Name:  workloadidentity.ProxyInitContainer,
		Image: x.images.InitImage,
		Env:   []envVar{{workloadidentity.EnvProxyPort, strconv.Itoa(x.port)}},
		SecurityContext: securityContext{
			Capabilities:           map[string][]string{"add": {"NET_ADMIN"}, "drop": {"ALL"}},
			ReadOnlyRootFilesystem: true,
		},
	}
}

// sidecar is the proxy itself. It names its user: one that the pod sets would
// be caught by the redirect and call itself.
func (x *proxy) sidecar() injected {
	port, level := "--proxy-port="+strconv.Itoa(x.port), "--log-level="+x.images.LogLevel
	return injected{
		Name:  workloadidentity.ProxyContainer,
		Image: x.images.Image,
		Args:  []string{port, level},
		Ports: []map[string]int{{"containerPort": x.port}},
		Lifecycle: map[string]any{"postStart": map[string]any{"exec": map[string]any{
			"command": []string{"/proxy", port, "--probe", level},
		}}},
		SecurityContext: securityContext{
			Capabilities:           map[string][]string{"drop": {"ALL"}},
			ReadOnlyRootFilesystem: true, RunAsNonRoot: true, RunAsUser: workloadidentity.ProxyUID,
		},
	}
}

// warnings are what makes a pod's calls miss the proxy, or the proxy fail.
func (x *proxy) warnings(pod Pod, warn func(string, ...any)) {
	if x == nil {
		return
	}
	if !x.native && len(pod.inits.items) > 0 && !pod.only(pod.inits, x.ours) {
		warn("before Kubernetes 1.%d the token proxy starts after the init containers: their calls to the metadata service fail", workloadidentity.NativeSidecarMinor)
	}
	for _, c := range pod.containers {
		if x.ours(c.name) {
			continue
		}
		if c.runAsUser == strconv.Itoa(workloadidentity.ProxyUID) {
			warn("container %s runs as user %d, the token proxy's: its calls to the metadata service reach the node's, not the proxy. Choose another runAsUser", quote(c.name), workloadidentity.ProxyUID)
		}
		if c.listens(x.port) {
			warn("container %s and the token proxy both listen on port %d: choose another with the annotation %s", quote(c.name), x.port, workloadidentity.AnnotationProxySidecarPort)
		}
	}
}

// only reports whether every item of a list has a name that f accepts.
func (p Pod) only(l list, f func(string) bool) bool {
	for _, o := range l.items {
		if name, _ := o["name"].(string); !f(name) {
			return false
		}
	}
	return true
}

// unclearProxy says whether the annotation has a value that is neither true nor
// false. v1.6 takes any value for a yes.
func unclearProxy(pod Pod) bool {
	value, present := pod.Annotations[workloadidentity.AnnotationInjectProxySidecar]
	_, err := strconv.ParseBool(strings.TrimSpace(value))
	return present && err != nil
}
