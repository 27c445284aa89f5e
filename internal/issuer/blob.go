package issuer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
)

// blobVersion is the version of the Blob service's REST interface: of 2020, so
// that sovereign clouds have it too.
const blobVersion = "2020-10-02"

const storageScope = "https://storage.azure.com/.default"

// A Blob is a container of a storage account, or a folder in it, from which
// anybody may read. It speaks the two requests that it needs of the service's
// REST interface: azblob, the SDK's module for all of it, would be linked into
// the command for them (and brings Arrow in its later versions).
type Blob struct {
	url      *url.URL
	pipeline runtime.Pipeline
}

var (
	accounts   = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	containers = regexp.MustCompile(`^(\$web|[a-z0-9](-?[a-z0-9]){2,62})$`)
)

// ParseBlobURL reads https://ACCOUNT.SUFFIX/CONTAINER[/FOLDER]. The suffix is the
// cloud's, "blob.core.windows.net": no other host gets a token.
func ParseBlobURL(s, suffix string) (*url.URL, error) {
	wrong := func(why string) error {
		return fmt.Errorf("%q is not a place in blob storage: %s; it is https://ACCOUNT.%s/CONTAINER, with a folder behind it if you want", s, why, suffix)
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, wrong("it is not a URL")
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil {
		// Not quoted: it may be a secret.
		return nil, fmt.Errorf("the place in blob storage on %s has a query, a fragment or a user: a SAS is not used, sign in with --auth-method instead", u.Host)
	}
	account, rest, _ := strings.Cut(u.Hostname(), ".")
	container, folder, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	switch {
	case u.Scheme != "https":
		return nil, wrong("it does not begin with https://")
	case u.Port() != "":
		return nil, wrong("it has a port")
	case !accounts.MatchString(account) || rest != suffix || suffix == "":
		return nil, wrong("its host is not that of an account's blobs in this cloud (see --azure-env)")
	case !containers.MatchString(container):
		return nil, wrong("it names no container")
	case strings.Contains("/"+folder+"/", "/../") || strings.Contains("/"+folder+"/", "/./") || strings.Contains(u.Path, "//"):
		return nil, wrong("its folder has a part that is empty, . or ..")
	}
	u.Path, u.RawPath = "/"+strings.Trim(u.Path, "/"), ""
	return u, nil
}

// NewBlob makes a target of a URL that ParseBlobURL takes. The credential needs
// the role Storage Blob Data Contributor on the container; nothing is sent yet.
func NewBlob(place, suffix string, cred azcore.TokenCredential, o policy.ClientOptions) (*Blob, error) {
	u, err := ParseBlobURL(place, suffix)
	if err != nil {
		return nil, err
	}
	auth := runtime.NewBearerTokenPolicy(cred, []string{storageScope}, nil)
	p := runtime.NewPipeline("lanyard", "1", runtime.PipelineOptions{PerRetry: []policy.Policy{auth}}, &o)
	return &Blob{url: u, pipeline: p}, nil
}

func (b *Blob) String() string { return b.url.String() }

// Read returns the two blobs and their ETags.
func (b *Blob) Read(ctx context.Context) (p Published, err error) {
	if p.Configuration, p.ConfigurationVersion, err = b.get(ctx, ConfigurationPath); err != nil {
		return p, err
	}
	p.Keys, p.KeysVersion, err = b.get(ctx, KeysPath)
	return p, err
}

func (b *Blob) get(ctx context.Context, name string) (data []byte, etag string, err error) {
	res, err := b.do(ctx, http.MethodGet, name, nil, nil)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		if res.Header.Get("x-ms-error-code") == "ContainerNotFound" {
			return nil, "", fmt.Errorf("there is no such container: make it with public read access for blobs (az storage container create --public-access blob)")
		}
		return nil, "", nil
	default:
		return nil, "", b.refused(res)
	}
	data, err = io.ReadAll(io.LimitReader(res.Body, MaxDocument+1))
	if err == nil && len(data) > MaxDocument {
		err = fmt.Errorf("%s has more than %d bytes", name, MaxDocument)
	}
	return data, res.Header.Get("ETag"), err
}

// Write puts one blob (Put Blob), if it is still of that version.
func (b *Blob) Write(ctx context.Context, name string, data []byte, version string) error {
	header := http.Header{
		"X-Ms-Blob-Type":          {"BlockBlob"},
		"X-Ms-Blob-Content-Type":  {"application/json"},
		"X-Ms-Blob-Cache-Control": {cacheControl},
	}
	if version == "" {
		header.Set("If-None-Match", "*")
	} else {
		header.Set("If-Match", version)
	}
	res, err := b.do(ctx, http.MethodPut, name, data, header)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusCreated:
		return nil
	case http.StatusPreconditionFailed, http.StatusConflict:
		return fmt.Errorf("%w: %w", ErrChanged, b.refused(res))
	}
	return b.refused(res)
}

func (b *Blob) do(ctx context.Context, method, name string, body []byte, header http.Header) (*http.Response, error) {
	req, err := runtime.NewRequest(ctx, method, b.url.JoinPath(name).String())
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Raw().Header[k] = v
	}
	req.Raw().Header.Set("X-Ms-Version", blobVersion)
	if body != nil {
		if err := req.SetBody(streaming.NopCloser(bytes.NewReader(body)), "application/json"); err != nil {
			return nil, err
		}
	}
	return b.pipeline.Do(req)
}

// refused is what the service said, with what to do about it where that is known.
func (b *Blob) refused(res *http.Response) error {
	err := runtime.NewResponseError(res)
	var e *azcore.ResponseError
	if !errors.As(err, &e) {
		return err
	}
	hint := ""
	switch e.StatusCode {
	case http.StatusForbidden:
		hint = ": the account that signed in needs the role Storage Blob Data Contributor on this container, and the storage account's firewall must let it in"
	case http.StatusUnauthorized:
		hint = ": the sign-in was not accepted; see --auth-method"
	}
	return fmt.Errorf("the storage account answered %d %s%s", e.StatusCode, e.ErrorCode, hint)
}
