package imds

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// TokenPath is where tokens are asked for.
const TokenPath = "/metadata/identity/oauth2/token"

// maxResource bounds what is echoed, logged and kept as a cache key.
const maxResource = 2048

// A TokenRequest is a well-formed question to the token endpoint. At most one
// of the three selectors is set.
type TokenRequest struct {
	Resource   string // never empty; verbatim after URL decoding
	ClientID   string // client_id
	ObjectID   string // object_id or principal_id
	ResourceID string // msi_res_id, mi_res_id or msi-res-id
	APIVersion string // api-version; empty if not given
}

// Rules say how strictly requests are read. The zero value is the contract of
// the metadata service.
type Rules struct {
	// HeaderOptional serves requests without "Metadata: true", as Pod Identity
	// before 1.8.4 did. The header is what keeps a tricked HTTP client
	// (server-side request forgery) from fetching tokens.
	HeaderOptional bool
}

// ParseTokenRequest reads a request under the contract of the metadata service.
// The error is always an *Error.
func ParseTokenRequest(r *http.Request) (TokenRequest, error) { return Rules{}.Parse(r) }

// Parse reads a request to the token endpoint. It does not look at the path.
// The error is always an *Error.
func (ru Rules) Parse(r *http.Request) (TokenRequest, error) {
	if r.Method != http.MethodGet {
		return TokenRequest{}, &Error{Status: http.StatusMethodNotAllowed, Code: CodeInvalidRequest, Description: "only GET is allowed"}
	}
	if err := ru.CheckHeaders(r.Header); err != nil {
		return TokenRequest{}, err
	}
	return parseQuery(r.URL.RawQuery)
}

// CheckHeaders refuses what every path of the metadata service refuses: a
// missing "Metadata: true" and anything that was forwarded. The error is always
// an *Error.
func (ru Rules) CheckHeaders(h http.Header) error {
	values := h.Values("Metadata")
	if len(values) == 0 && !ru.HeaderOptional {
		return invalid(DescriptionNoHeader)
	}
	for _, v := range values {
		if !strings.EqualFold(strings.TrimSpace(v), "true") {
			return invalid(DescriptionNoHeader)
		}
	}
	if _, forwarded := h["X-Forwarded-For"]; forwarded {
		return invalid("a request with an X-Forwarded-For header is refused: call the metadata service directly, not through a proxy")
	}
	return nil
}

// CheckHost refuses a request that was meant for a host of the public DNS: a web
// page that a browser shows (a headless one in a pod, say) may ask its own host,
// with the Metadata header, and have the name lead here (DNS rebinding). Programs
// ask by address; names without a dot and those below .internal are nobody's to
// register. The error is always an *Error.
func CheckHost(host string) error {
	name := host
	if before, _, err := net.SplitHostPort(host); err == nil {
		name = before
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if _, err := netip.ParseAddr(name); err == nil || !strings.Contains(name, ".") || strings.HasSuffix(name, ".internal") {
		return nil
	}
	return invalid("the Host header is " + printable(name) + ": ask the metadata service by its address")
}

func invalid(description string) *Error {
	return &Error{Status: http.StatusBadRequest, Code: CodeInvalidRequest, Description: description}
}

// A parameter that is overlooked because of its spelling would yield another
// identity's token than the caller meant, so names are read without regard to
// case and every alias counts.
func parseQuery(raw string) (TokenRequest, error) {
	var q TokenRequest
	var few [8]string // a request has two or three parameters: no map, and nothing on the heap
	names := few[:0]
	selectors := 0
	for raw != "" {
		var pair string
		if pair, raw, _ = strings.Cut(raw, "&"); pair == "" {
			continue
		}
		name, v, err := parameter(pair)
		if err != nil {
			return TokenRequest{}, &Error{Status: http.StatusBadRequest, Code: CodeInvalidRequest, Description: "the query string is malformed", Err: err}
		}
		name = strings.ToLower(name)
		names = append(names, name)
		var field *string
		switch name {
		case "resource":
			q.Resource = v
		case "api-version":
			q.APIVersion = v
		case "client_id":
			field = &q.ClientID
		case "object_id", "principal_id":
			field = &q.ObjectID
		case "msi_res_id", "mi_res_id", "msi-res-id":
			field = &q.ResourceID
		}
		if field != nil && v != "" {
			*field = v
			selectors++
		}
	}
	slices.Sort(names)
	for i := 1; i < len(names); i++ {
		if names[i] == names[i-1] {
			return TokenRequest{}, invalid("query parameter " + printable(names[i]) + " is given more than once")
		}
	}
	switch {
	case q.Resource == "":
		return TokenRequest{}, invalid(DescriptionNoResource)
	case len(q.Resource) > maxResource || !plain(q.Resource):
		return TokenRequest{}, &Error{Status: http.StatusBadRequest, Code: CodeInvalidResource, Description: "query variable 'resource' is too long or contains control characters"}
	case selectors > 1:
		return TokenRequest{}, invalid("only one of client_id, object_id and msi_res_id may be given")
	case len(q.ClientID)+len(q.ObjectID)+len(q.ResourceID) > maxResource, !plain(q.ClientID), !plain(q.ObjectID), !plain(q.ResourceID):
		return TokenRequest{}, invalid("the identity selector is too long or contains control characters")
	}
	return q, nil
}

// parameter reads one name=value as url.ParseQuery does: a semicolon is refused,
// because others take it for a separator.
func parameter(pair string) (name, value string, err error) {
	if strings.Contains(pair, ";") {
		return "", "", errors.New("a semicolon in the query")
	}
	name, value, _ = strings.Cut(pair, "=")
	if name, err = url.QueryUnescape(name); err != nil {
		return "", "", err
	}
	value, err = url.QueryUnescape(value)
	return name, value, err
}

// plain reports whether s has no control characters, which have no place in a
// log line or an event.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd })
}

func printable(s string) string {
	if len(s) > 32 || !plain(s) {
		return "(unprintable)"
	}
	return "'" + s + "'"
}

// A Kind says what a path is to whoever stands in front of a metadata service.
type Kind int

const (
	// Refused is a path not written the plain way, or under /metadata/identity without
	// being the token path. It must not be passed on: another parser might read
	// it as the token path (CVE-2022-23551).
	Refused Kind = iota
	// TokenEndpoint is a path that IsTokenPath accepts.
	TokenEndpoint
	// Instance is /metadata/instance and what lies below it.
	Instance
	// Other is any other path below /metadata.
	Other
	// Foreign is a plain path outside /metadata.
	Foreign
)

// Classify judges a request's path as it was sent, before any decoding: what is
// escaped, doubled, dotted or not ASCII is Refused.
func Classify(u *url.URL) Kind {
	p := u.EscapedPath()
	if u.Opaque != "" || !plainPath(p) {
		return Refused
	}
	if IsTokenPath(p) {
		return TokenEndpoint
	}
	segments := strings.Split(strings.ToLower(strings.Trim(p, "/")), "/")
	switch {
	case segments[0] != "metadata":
		return Foreign
	case len(segments) == 1:
		return Other
	case segments[1] == "identity":
		return Refused
	case segments[1] == "instance":
		return Instance
	default:
		return Other
	}
}

// plainPath reports whether p can only be read one way.
func plainPath(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	for i := range len(p) {
		c := p[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '/', c == '-', c == '_', c == '.', c == '~':
		default:
			return false
		}
	}
	segments := strings.Split(p[1:], "/")
	for i, s := range segments {
		last := i == len(segments)-1
		// Windows, which the real service runs on, drops dots at the end of a name.
		if s == "" && !last || strings.HasSuffix(s, ".") {
			return false
		}
	}
	return true
}

// IsTokenPath reports whether path is the token endpoint: in any case, with or
// without one trailing slash.
func IsTokenPath(path string) bool {
	p := strings.TrimSuffix(path, "/")
	if len(p) != len(TokenPath) {
		return false // EqualFold alone would let U+212A stand for k
	}
	return strings.EqualFold(p, TokenPath)
}
