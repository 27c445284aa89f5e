package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

// A Fetcher reads an issuer's documents from its URL, as Entra does: without
// credentials, over TLS, and not from a cache.
type Fetcher struct {
	HTTP *http.Client // nil means http.DefaultClient
	// AllowPrivate accepts addresses that Entra cannot reach: in a lab.
	AllowPrivate bool
	// Lookup resolves names; nil means the machine's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Public is what an issuer's URL answered.
type Public struct {
	Configuration oidc.Configuration
	Keys          []issuer.Key
}

// fetchLimit is how long an answer may take.
const fetchLimit = 10 * time.Second

// KeyIDs are the ids of the keys that the issuer of that name publishes now.
func (f Fetcher) KeyIDs(ctx context.Context, name string) ([]string, error) {
	p, findings := f.Fetch(ctx, name)
	if err := findings.Err(); err != nil {
		return nil, err
	}
	return issuer.KeyIDs(p.Keys), nil
}

// Fetch reads both documents and says what Entra would stumble over.
func (f Fetcher) Fetch(ctx context.Context, name string) (p Public, found Findings) {
	if err := issuer.ValidateIssuer(name); err != nil {
		found.add(Wrong, "issuer-url", err.Error(), "change --service-account-issuer of the API servers: add the new issuer before the old one, so that both are accepted")
		return p, found
	}
	address := oidc.ConfigurationURL(name)
	data, finding := f.get(ctx, address, "discovery document")
	if finding != nil {
		found = append(found, *finding)
		return p, found
	}
	var err error
	if p.Configuration, err = issuer.ParseConfiguration(data); err != nil {
		found.add(Wrong, "discovery-unreadable", fmt.Sprintf("%s: %v", address, err), "publish it with: lanyard issuer publish")
		return p, found
	}
	found = append(found, compareIssuer(name, p.Configuration.Issuer)...)
	uri, err := url.Parse(p.Configuration.JWKSURI)
	if err != nil || uri.Scheme != "https" || uri.Host == "" {
		found.add(Wrong, "jwks-uri-not-https", fmt.Sprintf("jwks_uri is %q, which is not an https URL: Entra does not fetch it", p.Configuration.JWKSURI),
			"publish the documents with lanyard issuer publish, or set --service-account-jwks-uri="+issuer.KeysURL(name))
		return p, found
	}
	if p.Configuration.JWKSURI != issuer.KeysURL(name) {
		found.add(Odd, "jwks-uri-elsewhere", fmt.Sprintf("jwks_uri is %q, not %q: make sure that keys are published there", p.Configuration.JWKSURI, issuer.KeysURL(name)), "")
	}
	if a, err := netip.ParseAddr(uri.Hostname()); err == nil && !onInternet(a) && !strings.HasPrefix(p.Configuration.JWKSURI, "https://"+hostOf(name)+"/") {
		found.add(Wrong, "jwks-uri-wrong", fmt.Sprintf("jwks_uri is %q: that is the API server's own address, as it is without --service-account-jwks-uri", p.Configuration.JWKSURI),
			"set that flag to "+issuer.KeysURL(name)+", or publish with lanyard issuer publish, which writes the right one")
		return p, found
	}
	if data, finding = f.get(ctx, p.Configuration.JWKSURI, "key set"); finding != nil {
		found = append(found, *finding)
		return p, found
	}
	if p.Keys, err = issuer.ParseKeys(data); err != nil {
		code, fix := "keys-unreadable", "publish them with: lanyard issuer publish"
		if errors.Is(err, issuer.ErrPrivate) {
			code, fix = "private-key-published", "take it down at once, and replace the key: lanyard issuer rotate"
		}
		found.add(Wrong, code, fmt.Sprintf("%s: %v", p.Configuration.JWKSURI, err), fix)
		return p, found
	}
	return p, append(found, checkKeys(p.Keys)...)
}

func hostOf(issuer string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return ""
	}
	return u.Host
}

// compareIssuer names the way in which two issuers differ.
func compareIssuer(want, got string) (found Findings) {
	switch {
	case want == got:
	case strings.TrimSuffix(want, "/") == strings.TrimSuffix(got, "/"):
		found.add(Wrong, "trailing-slash", fmt.Sprintf("the issuer is %q, and its document says %q: they must be equal to the last slash", want, got),
			fmt.Sprintf("use %q everywhere: in --service-account-issuer, in the document and in every federated credential", want))
	case strings.EqualFold(want, got):
		found.add(Wrong, "issuer-case", fmt.Sprintf("the issuer is %q, and its document says %q: upper and lower case differ", want, got), "")
	default:
		found.add(Wrong, "issuer-mismatch", fmt.Sprintf("the issuer is %q, but the document at its URL says %q: it is another cluster's", want, got),
			"publish this cluster's documents there with lanyard issuer publish, or give each cluster its own URL")
	}
	return found
}

func checkKeys(keys []issuer.Key) (found Findings) {
	if len(keys) == 0 {
		found.add(Wrong, "no-keys", "the key set is empty: no token is accepted", "publish the keys with: lanyard issuer publish")
	}
	if len(keys) > issuer.MaxKeys {
		found.add(Wrong, "too-many-keys", fmt.Sprintf("the key set has %d keys, and Entra reads only the first %d", len(keys), issuer.MaxKeys), "remove the keys that sign nothing any more")
	}
	seen := map[string]int{}
	for _, k := range keys {
		seen[k.ID]++
		switch seen[k.ID] {
		case 1:
		case 2:
			found.add(Wrong, "key-id-twice", fmt.Sprintf("the key id %q is there twice", k.ID), "")
			continue
		default:
			continue
		}
		if err := k.Validate(); err != nil {
			found.add(Odd, "key-unusable", err.Error(), "")
		}
	}
	return found
}

func (f Fetcher) get(ctx context.Context, address, what string) ([]byte, *Finding) {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	wrong := func(code, fix, format string, args ...any) *Finding {
		return &Finding{Severity: Wrong, Code: code, Text: fmt.Sprintf("the %s at %s: ", what, address) + fmt.Sprintf(format, args...), Fix: fix}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, wrong("unreachable", "", "%v", err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Cache-Control", "no-cache")
	client := http.Client{}
	if f.HTTP != nil {
		client = *f.HTTP
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if !f.AllowPrivate {
		if private := f.private(ctx, req.URL.Hostname()); private != "" {
			return nil, wrong("private-address", "make it reachable from the internet (lanyard issuer publish to blob storage needs nothing that listens), or check with --allow-private in a lab",
				"its host is %s, which Entra cannot reach", private)
		}
	}
	res, err := client.Do(req)
	if err != nil {
		var dns *net.DNSError
		switch {
		case errors.As(err, &dns):
			return nil, wrong("dns", "make a public DNS record", "the name %s is not known", dns.Name)
		case strings.Contains(err.Error(), "x509") || strings.Contains(err.Error(), "tls:"):
			return nil, wrong("tls", "use a certificate of a public authority for this very name", "TLS fails: %v", errors.Unwrap(err))
		}
		return nil, wrong("unreachable", "", "%v", errors.Unwrap(err))
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode >= 300 && res.StatusCode < 400:
		return nil, wrong("redirect", "serve it at this very address", "it redirects to %q", res.Header.Get("Location"))
	case res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusConflict:
		return nil, wrong("not-public", "Entra reads without credentials: allow public read access to the blobs of the container (and on the storage account), or bind system:service-account-issuer-discovery to system:unauthenticated on an API server that is itself public", "it answers %d: it is not public", res.StatusCode)
	case res.StatusCode == http.StatusNotFound:
		return nil, wrong("not-found", "publish it there with: lanyard issuer publish", "it answers 404")
	case res.StatusCode != http.StatusOK:
		return nil, wrong("unreachable", "", "it answers %d", res.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, issuer.MaxDocument+1))
	switch {
	case err != nil:
		return nil, wrong("unreachable", "", "%v", err)
	case len(data) > issuer.MaxDocument:
		return nil, wrong("too-large", "", "it has more than %d bytes", issuer.MaxDocument)
	}
	return data, nil
}

// private returns the address of a host that is not on the internet, if that is
// known: a name that only a proxy can resolve is not.
func (f Fetcher) private(ctx context.Context, host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		if !onInternet(a) {
			return a.String()
		}
		return ""
	}
	lookup := f.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	addresses, err := lookup(ctx, host)
	if err != nil {
		return ""
	}
	for _, a := range addresses {
		if onInternet(a) {
			return ""
		}
	}
	if len(addresses) == 0 {
		return ""
	}
	return addresses[0].Unmap().String()
}

// shared is RFC 6598: carrier-grade NAT, and some cloud's nodes.
var shared = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)

func onInternet(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && !a.IsPrivate() && !shared.Contains(a)
}
