package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// corefile: the cluster's names come from the API, the cloud's names are the
// local cloud's address, and nothing else exists. A pod can therefore use
// real host names and never reaches the real ones.
var corefile = template.Must(template.New("Corefile").Parse(`cluster.local:53 in-addr.arpa:53 ip6.arpa:53 {
    bind {{.Bind}}
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig {{printf "%q" .Kubeconfig}}
        pods insecure
        ttl 5
    }
}
.:53 {
    bind {{.Bind}}
    errors
{{- if .Match}}
    template IN A . {
        match {{.Match}}
        answer "{{"{{ .Name }}"}} 30 IN A {{.Cloud}}"
        fallthrough
    }
    template ANY ANY . {
        match {{.Match}}
        rcode NOERROR
        fallthrough
    }
{{- end}}
    template ANY ANY . {
        rcode NXDOMAIN
    }
}
`))

// hostPattern returns a regular expression for names of hosts. A host may
// begin with "*.", which stands for one label.
func hostPattern(hosts []string) (string, error) {
	var names []string
	for _, h := range hosts {
		prefix := ""
		name, wild := strings.CutPrefix(strings.TrimSuffix(strings.ToLower(h), "."), "*.")
		if wild {
			prefix = `[a-z0-9-]+\.`
		}
		if !hostname.MatchString(name) {
			return "", fmt.Errorf("%q is not a host name that cluster DNS could answer for", h)
		}
		names = append(names, prefix+regexp.QuoteMeta(name))
	}
	if len(names) == 0 {
		return "", nil
	}
	return `^(` + strings.Join(names, "|") + `)\.$`, nil
}

// formatCorefile returns CoreDNS's configuration.
func formatCorefile(bind []netip.Addr, cloud netip.Addr, kubeconfig string, hosts []string) ([]byte, error) {
	match, err := hostPattern(hosts)
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, a := range bind {
		addresses = append(addresses, a.String())
	}
	var out bytes.Buffer
	err = corefile.Execute(&out, map[string]string{
		"Bind": strings.Join(addresses, " "), "Cloud": cloud.String(), "Kubeconfig": kubeconfig, "Match": match,
	})
	return out.Bytes(), err
}

var hostname = regexp.MustCompile(`^[a-z0-9-]+(\.[a-z0-9-]+)+$`)

// serveDNS makes the Service under which pods find CoreDNS, which is a
// process of the node and no pod: so there is no Deployment to wait for.
func serveDNS(ctx context.Context, client kubernetes.Interface, service, endpoint netip.Addr) error {
	name := metav1.ObjectMeta{
		Name: "kube-dns", Namespace: metav1.NamespaceSystem,
		Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"},
	}
	udp, tcp, port := corev1.ProtocolUDP, corev1.ProtocolTCP, int32(53)
	_, err := client.CoreV1().Services(name.Namespace).Create(ctx, &corev1.Service{
		ObjectMeta: name,
		Spec: corev1.ServiceSpec{
			ClusterIP: service.String(),
			Ports:     []corev1.ServicePort{{Name: "dns", Protocol: udp, Port: port}, {Name: "dns-tcp", Protocol: tcp, Port: port}},
		},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making the service of cluster DNS: %w", err)
	}
	slice := name.DeepCopy()
	slice.Labels[discoveryv1.LabelServiceName] = name.Name
	slice.Labels[discoveryv1.LabelManagedBy] = "lanyard-lab"
	ready, dns, dnsTCP := true, "dns", "dns-tcp"
	_, err = client.DiscoveryV1().EndpointSlices(name.Namespace).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  *slice,
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{endpoint.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &dns, Protocol: &udp, Port: &port}, {Name: &dnsTCP, Protocol: &tcp, Port: &port}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("making the endpoint of cluster DNS: %w", err)
	}
	return nil
}

// resolver asks cluster DNS as a pod does, through its Service.
func (l *Lab) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return l.Netns.DialContext(ctx, network, netip.AddrPortFrom(DNSAddress, 53).String())
	}}
}

// waitDNS waits until cluster DNS answers: CoreDNS and kube-proxy both work.
func (l *Lab) waitDNS(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, time.Second)
		_, err := l.resolver().LookupNetIP(try, "ip4", "kubernetes.default.svc.cluster.local.")
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for cluster DNS: %w: %w", context.Cause(ctx), err)
		}
	}
}
