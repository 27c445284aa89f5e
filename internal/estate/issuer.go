package estate

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"

	"k8s.io/client-go/rest"
)

// defaultIssuer is the issuer of the cluster's service-account tokens. The
// name cannot exist (RFC 6761): the local cloud serves it. The trailing slash
// is as on AKS and part of the name.
const defaultIssuer = "https://oidc.lanyard.test/cluster/"

// A publisher serves the discovery document and the keys of a cluster's
// issuer where Entra looks for them: as the API server has them at that
// moment (KEP-1393), or as lanyard issuer publish has put them into folder,
// which is what a cluster does whose API server is not public.
type publisher struct {
	folder string // empty means the API server
	api    atomic.Pointer[rest.Interface]
}

// serve returns the host of the issuer and what answers there.
func (p *publisher) serve(issuer string) (host string, h http.Handler, err error) {
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Port() != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", nil, fmt.Errorf("the issuer %q cannot be served: it must be https://HOST/PATH without a port, because that is where Entra fetches its keys", issuer)
	}
	base := strings.TrimSuffix(u.Path, "/")
	// No ServeMux: what a person writes is not always a pattern.
	return u.Host, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, ok := strings.CutPrefix(r.URL.Path, base)
		if !ok || path != "/.well-known/openid-configuration" && path != "/openid/v1/jwks" {
			http.NotFound(w, r)
			return
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET is allowed", http.StatusMethodNotAllowed)
			return
		}
		p.publish(w, r, path)
	}), nil
}

// from says which API server has the documents.
func (p *publisher) from(api rest.Interface) { p.api.Store(&api) }

func (p *publisher) publish(w http.ResponseWriter, r *http.Request, path string) {
	if p.folder != "" {
		w.Header().Set("Content-Type", "application/json")
		http.ServeFile(w, r, filepath.Join(p.folder, filepath.FromSlash(path)))
		return
	}
	api := p.api.Load()
	if api == nil {
		http.Error(w, "the cluster is not up yet", http.StatusServiceUnavailable)
		return
	}
	document, err := (*api).Get().AbsPath(path).DoRaw(r.Context())
	if err != nil {
		http.Error(w, "the cluster's API server does not answer", http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(document) // the client may be gone
}
