package issuer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/oidc"
)

// askLimit is how long one API server may take: a dead one must not hold up
// what the others say.
const askLimit = 10 * time.Second

// probeAudience is what tokens are asked for only to see who signs them: nobody
// accepts it.
const probeAudience = "lanyard.id/issuer-probe"

// A Cluster asks the API servers of one cluster, each by itself. Config must be
// set. It is a Source.
type Cluster struct {
	Config *rest.Config
	// Servers are the URLs of all API servers. Empty means the endpoints of the
	// Service "kubernetes" if they can be reached from here, else Config's.
	Servers []string
	// Account, "NAMESPACE/NAME", is the service account for which tokens are
	// asked to see who signs; empty means "default/default". Nobody accepts them.
	Account string
}

// An APIServer is what one API server says about itself.
type APIServer struct {
	URL    string
	Issuer string
	Keys   []Key // that it accepts
	// Signer is the id of the key that it signs with now.
	Signer string
	// Lifetime is how long a token lives that was asked for 24 hours.
	Lifetime time.Duration
	Err      error // why the rest is not known
}

// Accepts reports whether it verifies tokens with that key.
func (s APIServer) Accepts(kid string) bool {
	return slices.ContainsFunc(s.Keys, func(k Key) bool { return k.ID == kid })
}

// Documents returns the issuer and the keys that any API server accepts. Where
// the single API servers are not to be known or reached from here, those of the
// one that Config leads to are returned as incomplete.
func (c *Cluster) Documents(ctx context.Context) (d Documents, complete bool, err error) {
	servers, err := c.ask(ctx, false)
	if err != nil && !apierrors.IsForbidden(err) {
		return Documents{}, false, err
	}
	known := slices.DeleteFunc(slices.Clone(servers), func(s APIServer) bool { return s.Err != nil })
	complete = err == nil && len(known) == len(servers)
	if len(known) == 0 {
		s := c.askOne(ctx, c.Config.Host, false)
		if s.Err != nil {
			return Documents{}, false, errors.Join(err, s.Err)
		}
		known = []APIServer{s}
	}
	for _, s := range known {
		if d.Issuer != "" && d.Issuer != s.Issuer {
			return Documents{}, false, fmt.Errorf("the API servers disagree about the issuer: %q and %q; give all the same --service-account-issuer first", d.Issuer, s.Issuer)
		}
		d.Issuer = s.Issuer
		d.Keys = Merge(d.Keys, s.Keys...)
	}
	return d, complete, nil
}

// Observe asks every API server what it accepts and signs with. An API server
// that does not answer has an Err; the error is that none is known.
func (c *Cluster) Observe(ctx context.Context) ([]APIServer, error) { return c.ask(ctx, true) }

func (c *Cluster) ask(ctx context.Context, sign bool) ([]APIServer, error) {
	urls, err := c.servers(ctx)
	if err != nil {
		return nil, err
	}
	found := make([]APIServer, len(urls))
	var all sync.WaitGroup
	for i, u := range urls {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askLimit)
			defer cancel()
			found[i] = c.askOne(ctx, u, sign)
		})
	}
	all.Wait()
	return found, ctx.Err()
}

func (c *Cluster) askOne(ctx context.Context, server string, sign bool) APIServer {
	s := APIServer{URL: server}
	client, err := c.client(server)
	if err != nil {
		s.Err = err
		return s
	}
	get := func(path string) []byte {
		data, err := client.Discovery().RESTClient().Get().AbsPath(path).DoRaw(ctx)
		if err != nil && s.Err == nil {
			s.Err = fmt.Errorf("reading /%s: %w", path, err)
		}
		return data
	}
	configuration, keys := get(ConfigurationPath), get(KeysPath)
	if s.Err != nil {
		return s
	}
	d, _, err := ParseDocuments(configuration, keys)
	if err != nil {
		s.Err = err
		return s
	}
	s.Issuer, s.Keys = d.Issuer, d.Keys
	if sign {
		s.Signer, s.Lifetime, s.Err = c.signer(ctx, client)
	}
	return s
}

// signer asks for a token and looks at its head: the token itself is forgotten.
func (c *Cluster) signer(ctx context.Context, client kubernetes.Interface) (kid string, life time.Duration, err error) {
	namespace, name, ok := strings.Cut(c.Account, "/")
	if c.Account == "" {
		namespace, name, ok = "default", "default", true
	}
	if !ok {
		return "", 0, fmt.Errorf("%q is not NAMESPACE/NAME of a service account", c.Account)
	}
	want := int64((24 * time.Hour).Seconds())
	answer, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{Audiences: []string{probeAudience}, ExpirationSeconds: &want},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", 0, fmt.Errorf("asking for a token of the service account %s/%s to see which key signs: %w", namespace, name, err)
	}
	t, err := oidc.Parse(answer.Status.Token)
	if err != nil {
		return "", 0, fmt.Errorf("reading the head of a fresh token: %w", err)
	}
	issued, _, _ := t.Claims.Time("iat")
	expires, there, err := t.Claims.Time("exp")
	if err != nil || !there || t.KeyID() == "" {
		return "", 0, errors.New("a fresh token has no key id or no end")
	}
	return t.KeyID(), time.Duration(expires-issued) * time.Second, nil
}

func (c *Cluster) client(server string) (kubernetes.Interface, error) {
	config := rest.CopyConfig(c.Config)
	config.Timeout = askLimit
	if server != "" && server != config.Host {
		config.Host = server
		// Not a proxy's or a load balancer's name: the API server's own, which
		// every serving certificate has.
		if config.ServerName != "" {
			config.ServerName = "kubernetes.default.svc"
		}
	}
	return kubernetes.NewForConfig(config)
}

// servers finds the URLs of all API servers.
func (c *Cluster) servers(ctx context.Context) ([]string, error) {
	if len(c.Servers) > 0 {
		return c.Servers, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	client, err := c.client("")
	if err != nil {
		return nil, err
	}
	slices, err := client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
	if err != nil {
		return nil, fmt.Errorf("finding the API servers: %w", err)
	}
	urls := endpoints(slices.Items)
	if len(urls) <= 1 {
		return []string{c.Config.Host}, nil // there is one: however it is reached
	}
	return urls, nil
}

func endpoints(list []discoveryv1.EndpointSlice) []string {
	var urls []string
	for _, s := range list {
		for _, p := range s.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != "https" {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					u := url.URL{Scheme: "https", Host: net.JoinHostPort(a, fmt.Sprint(*p.Port))}
					urls = append(urls, u.String())
				}
			}
		}
	}
	slices.Sort(urls)
	return slices.Compact(urls)
}

// LegacyTokens returns the names of Secrets that hold a service-account token
// signed with one of the keys. Those tokens never end, so they outlive any wait.
func (c *Cluster) LegacyTokens(ctx context.Context, kids []string) ([]string, error) {
	client, err := c.client("")
	if err != nil {
		return nil, err
	}
	var found []string
	o := metav1.ListOptions{FieldSelector: "type=" + string(corev1.SecretTypeServiceAccountToken), Limit: 500}
	for {
		list, err := client.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("looking for service-account tokens in Secrets: %w", err)
		}
		for _, s := range list.Items {
			t, err := oidc.Parse(string(s.Data[corev1.ServiceAccountTokenKey]))
			if err == nil && slices.Contains(kids, t.KeyID()) {
				found = append(found, s.Namespace+"/"+s.Name)
			}
		}
		if o.Continue = list.Continue; o.Continue == "" {
			return found, nil
		}
	}
}
