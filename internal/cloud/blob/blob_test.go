package blob_test

import (
	"bytes"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	azblobs "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/blob"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	account = "lanyardtest"
	service = "https://" + account + "." + azure.SuffixBlob
)

type fixture struct {
	*cloudtest.Cloud
	id string // of the account
}

// newFixture makes an account; its owner may do everything with blobs.
func newFixture(t *testing.T, public bool) *fixture {
	t.Helper()
	f := &fixture{Cloud: cloudtest.New(t)}
	group := "/subscriptions/" + f.Subscription + "/resourceGroups/rg"
	f.id = group + "/providers/" + azure.TypeStorageAccount + "/" + account
	f.Do(http.MethodPut, group, map[string]any{"location": "eastus"}, nil)
	f.Do(http.MethodPut, f.id, map[string]any{"location": "eastus", "sku": map[string]any{"name": "Standard_LRS"}, "kind": "StorageV2", "properties": map[string]any{"allowBlobPublicAccess": public}}, nil)
	f.assign(f.OwnerSP.ID, azure.RoleStorageBlobDataOwner, f.id)
	return f
}

func (f *fixture) assign(principal, role, scope string) {
	f.T.Helper()
	name := fmt.Sprintf("%08x-0000-0000-0000-%012x", rand.Uint32(), rand.Uint32())
	f.Do(http.MethodPut, scope+"/providers/"+azure.TypeRoleAssignment+"/"+name, map[string]any{"properties": map[string]any{
		"roleDefinitionId": "/subscriptions/" + f.Subscription + "/providers/" + azure.TypeRoleDefinition + "/" + role, "principalId": principal,
	}}, nil)
}

func (f *fixture) client(cred azcore.TokenCredential) *azblob.Client {
	f.T.Helper()
	c, err := azblob.NewClient(service, cred, &azblob.ClientOptions{ClientOptions: f.Options()})
	if err != nil {
		f.T.Fatal(err)
	}
	return c
}

func (f *fixture) must(err error) {
	f.T.Helper()
	if err != nil {
		f.T.Fatal(err)
	}
}

// wantCode expects a refusal of the service.
func (f *fixture) wantCode(what string, err error, status int, code string) {
	f.T.Helper()
	var refused *azcore.ResponseError
	if !errors.As(err, &refused) || refused.StatusCode != status || refused.ErrorCode != code {
		f.T.Errorf("%s: %v, want %d %s", what, err, status, code)
	}
}

func TestTheSDKUploadsReadsListsAndDeletes(t *testing.T) {
	f := newFixture(t, true)
	c, ctx := f.client(f.Owner()), t.Context()
	_, err := c.CreateContainer(ctx, "oidc", &azblob.CreateContainerOptions{Access: to.Ptr(azblob.PublicAccessTypeBlob)})
	f.must(err)
	_, err = c.CreateContainer(ctx, "oidc", nil)
	f.wantCode("a second time", err, 409, "ContainerAlreadyExists")
	document := []byte(`{"issuer":"x"}`)
	_, err = c.UploadBuffer(ctx, "oidc", ".well-known/openid-configuration", document, &azblob.UploadBufferOptions{
		HTTPHeaders: &azblobs.HTTPHeaders{BlobContentType: to.Ptr("application/json"), BlobCacheControl: to.Ptr("max-age=300")},
		Metadata:    map[string]*string{"owner": to.Ptr("me")},
	})
	f.must(err)
	got, err := c.DownloadStream(ctx, "oidc", ".well-known/openid-configuration", nil)
	f.must(err)
	body, err := io.ReadAll(got.Body)
	f.must(err)
	sum := md5.Sum(document)
	if !bytes.Equal(body, document) || *got.ContentType != "application/json" || *got.CacheControl != "max-age=300" || !bytes.Equal(got.ContentMD5, sum[:]) || *got.Metadata["Owner"] != "me" || *got.BlobType != azblobs.BlobTypeBlockBlob {
		t.Errorf("%s, %+v", body, got)
	}
	_, err = c.UploadStream(ctx, "oidc", "openid/v1/jwks", strings.NewReader(`{"keys":[]}`), nil)
	f.must(err)
	var names []string
	pager := c.NewListBlobsFlatPager("oidc", &azblob.ListBlobsFlatOptions{MaxResults: to.Ptr(int32(1))})
	pages := 0
	for pager.More() {
		page, err := pager.NextPage(ctx)
		f.must(err)
		pages++
		for _, b := range page.Segment.BlobItems {
			names = append(names, fmt.Sprintf("%s %d", *b.Name, *b.Properties.ContentLength))
		}
	}
	if diff := cmp.Diff([]string{".well-known/openid-configuration 14", "openid/v1/jwks 11"}, names); diff != "" || pages != 2 {
		t.Errorf("%d pages (-want +got):\n%s", pages, diff)
	}
	folders := c.ServiceClient().NewContainerClient("oidc").NewListBlobsHierarchyPager("/", nil)
	page, err := folders.NextPage(ctx)
	f.must(err)
	if p := page.Segment.BlobPrefixes; len(p) != 2 || *p[0].Name != ".well-known/" || *p[1].Name != "openid/" || len(page.Segment.BlobItems) != 0 {
		t.Errorf("folders: %+v", page.Segment)
	}
	_, err = c.DeleteBlob(ctx, "oidc", "openid/v1/jwks", nil)
	f.must(err)
	_, err = c.DownloadStream(ctx, "oidc", "openid/v1/jwks", nil)
	f.wantCode("after the deletion", err, 404, "BlobNotFound")
	properties, err := c.ServiceClient().NewContainerClient("oidc").GetProperties(ctx, nil)
	f.must(err)
	if *properties.BlobPublicAccess != container.PublicAccessTypeBlob {
		t.Errorf("access %q", *properties.BlobPublicAccess)
	}
	_, err = c.ServiceClient().NewContainerClient("oidc").SetAccessPolicy(ctx, nil)
	f.must(err)
	if properties, err = c.ServiceClient().NewContainerClient("oidc").GetProperties(ctx, nil); err != nil || properties.BlobPublicAccess != nil {
		t.Errorf("access after it was closed: %v, %v", properties.BlobPublicAccess, err)
	}
	_, err = c.DeleteContainer(ctx, "oidc", nil)
	f.must(err)
	_, err = c.UploadBuffer(ctx, "oidc", "x", nil, nil)
	f.wantCode("a container that is gone", err, 404, "ContainerNotFound")
	f.Do(http.MethodDelete, f.id, nil, nil)
}

func TestLargeBlobsAreMadeOfBlocks(t *testing.T) {
	f := newFixture(t, false)
	c, ctx := f.client(f.Owner()), t.Context()
	_, err := c.CreateContainer(ctx, "big", nil)
	f.must(err)
	content := make([]byte, 5<<20+17)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	_, err = c.UploadStream(ctx, "big", "b", bytes.NewReader(content), &azblob.UploadStreamOptions{BlockSize: 1 << 20, Concurrency: 2})
	f.must(err)
	got := make([]byte, len(content))
	_, err = c.DownloadBuffer(ctx, "big", "b", got, &azblob.DownloadBufferOptions{BlockSize: 1<<20 + 3, Concurrency: 3})
	f.must(err)
	if !bytes.Equal(got, content) {
		t.Error("another content came back")
	}
	list, err := c.ServiceClient().NewContainerClient("big").NewBlockBlobClient("b").GetBlockList(ctx, blockblob.BlockListTypeAll, nil)
	f.must(err)
	if len(list.CommittedBlocks) != 6 || len(list.UncommittedBlocks) != 0 {
		t.Errorf("%d and %d blocks", len(list.CommittedBlocks), len(list.UncommittedBlocks))
	}
	_, err = c.UploadBuffer(ctx, "big", "b", []byte("small"), nil)
	f.must(err)
	f.Check("a small blob in the place of a large one")
	resp := f.send(http.MethodPut, "/big/huge", bytes.NewReader(make([]byte, blob.MaxBlob+1)), map[string]string{"x-ms-blob-type": "BlockBlob"}, f.Token(f.Owner(), azure.ResourceStorage))
	if resp.StatusCode != 413 || resp.Header.Get("x-ms-error-code") != "RequestBodyTooLarge" {
		t.Errorf("65 MiB: %d %v", resp.StatusCode, resp.Header)
	}
}

// send sends one request; its body is closed.
func (f *fixture) send(method, path string, body io.Reader, header map[string]string, token string) *http.Response {
	f.T.Helper()
	req, err := http.NewRequestWithContext(f.T.Context(), method, service+path, body)
	f.must(err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("x-ms-version", "2021-08-06")
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := f.Client.Do(req)
	f.must(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	f.must(err)
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	return resp
}

func TestConditions(t *testing.T) {
	f := newFixture(t, false)
	token := f.Token(f.Owner(), azure.ResourceStorage)
	f.send("PUT", "/docs?restype=container", nil, nil, token)
	put := func(header map[string]string) *http.Response {
		header["x-ms-blob-type"] = "BlockBlob"
		return f.send("PUT", "/docs/a", strings.NewReader("text"), header, token)
	}
	first := put(map[string]string{"If-None-Match": "*"})
	tag := first.Header.Get("ETag")
	if first.StatusCode != 201 || !strings.HasPrefix(tag, `"0x`) {
		t.Fatalf("%d %v", first.StatusCode, first.Header)
	}
	get := func(header map[string]string) *http.Response { return f.send("GET", "/docs/a", nil, header, token) }
	for _, tt := range []struct {
		name    string
		request func(map[string]string) *http.Response
		header  map[string]string
		status  int
		code    string
	}{
		{"a new blob only, and there is one", put, map[string]string{"If-None-Match": "*"}, 409, "BlobAlreadyExists"},
		{"another version is to be replaced", put, map[string]string{"If-Match": `"0x1"`}, 412, "ConditionNotMet"},
		{"a wrong sum", put, map[string]string{"Content-MD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}, 400, "Md5Mismatch"},
		{"no sum at all", put, map[string]string{"Content-MD5": "x"}, 400, "InvalidMd5"},
		{"the version is known", get, map[string]string{"If-None-Match": tag}, 304, "ConditionNotMet"},
		{"another version is known", get, map[string]string{"If-None-Match": `"0x1"`}, 200, ""},
		{"another version is wanted", get, map[string]string{"If-Match": `"0x1"`}, 412, "ConditionNotMet"},
		{"nothing newer", get, map[string]string{"If-Modified-Since": first.Header.Get("Last-Modified")}, 304, "ConditionNotMet"},
		{"a range", get, map[string]string{"Range": "bytes=1-2"}, 206, ""},
		{"a range to the end", get, map[string]string{"x-ms-range": "bytes=2-"}, 206, ""},
		{"a range that is all of it and more", get, map[string]string{"x-ms-range": "bytes=0-33554431"}, 206, ""},
		{"a range behind the end", get, map[string]string{"Range": "bytes=9-"}, 416, "InvalidRange"},
		{"a range that is none", get, map[string]string{"Range": "lines=1-2"}, 200, ""},
		{"the version that is there is replaced", put, map[string]string{"If-Match": tag}, 201, ""},
		{"and only once", put, map[string]string{"If-Match": tag}, 412, "ConditionNotMet"},
	} {
		if r := tt.request(tt.header); r.StatusCode != tt.status || r.Header.Get("x-ms-error-code") != tt.code {
			t.Errorf("%s: %d %s, want %d %s", tt.name, r.StatusCode, r.Header.Get("x-ms-error-code"), tt.status, tt.code)
		}
	}
	for asked, want := range map[string][2]string{"bytes=1-2": {"ex", "bytes 1-2/4"}, "bytes=0-33554431": {"text", "bytes 0-3/4"}} {
		r := get(map[string]string{"Range": asked})
		body, _ := io.ReadAll(r.Body)
		if string(body) != want[0] || r.Header.Get("Content-Range") != want[1] {
			t.Errorf("%s: %q %v", asked, body, r.Header)
		}
	}
	tagNow := get(nil).Header.Get("ETag")
	var wg sync.WaitGroup
	won := make(chan bool, 8)
	for range 8 {
		wg.Go(func() { won <- put(map[string]string{"If-Match": tagNow}).StatusCode == 201 })
	}
	wg.Wait()
	close(won)
	n := 0
	for w := range won {
		if w {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of 8 replaced the same version", n)
	}
}

func TestWhoMayReadAndWrite(t *testing.T) {
	f := newFixture(t, true)
	token := f.Token(f.Owner(), azure.ResourceStorage)
	for name, access := range map[string]string{"private": "", "blobs": "blob", "open": "container"} {
		header := map[string]string{}
		if access != "" {
			header["x-ms-blob-public-access"] = access
		}
		if r := f.send("PUT", "/"+name+"?restype=container", nil, header, token); r.StatusCode != 201 {
			t.Fatalf("%s: %d", name, r.StatusCode)
		}
		f.send("PUT", "/"+name+"/a", strings.NewReader("x"), map[string]string{"x-ms-blob-type": "BlockBlob"}, token)
	}
	given := func(name, role, scope string) string {
		sp, cred := f.Application(name)
		if role != "" {
			f.assign(sp.ID, role, scope)
		}
		return f.Token(cred, azure.ResourceStorage)
	}
	tokens := map[string]string{
		"nobody": "", "stranger": given("stranger", "", ""),
		"reader":             given("reader", azure.RoleStorageBlobDataReader, f.id),
		"writer":             given("writer", azure.RoleStorageBlobDataContributor, f.id+"/blobServices/default/containers/private"),
		"owner of resources": given("contributor", azure.RoleContributor, f.id),
		"arm":                f.Token(f.Owner(), azure.ResourceManagement), "forged": token + "x",
	}
	blobType := map[string]string{"x-ms-blob-type": "BlockBlob"}
	for _, tt := range []struct {
		who, method, path string
		header            map[string]string
		status            int
		code              string
	}{
		{"nobody", "GET", "/blobs/a", nil, 200, ""},
		{"nobody", "HEAD", "/blobs/a", nil, 200, ""},
		{"nobody", "GET", "/open/a", nil, 200, ""},
		{"nobody", "GET", "/open?restype=container&comp=list", nil, 200, ""},
		{"nobody", "GET", "/blobs?restype=container&comp=list", nil, 404, "ResourceNotFound"},
		{"nobody", "GET", "/private/a", nil, 404, "ResourceNotFound"},
		{"nobody", "GET", "/private/a", map[string]string{"x-ms-version": "2021-08-06"}, 401, "NoAuthenticationInformation"},
		{"nobody", "GET", "/nothing/a", nil, 404, "ResourceNotFound"},
		{"nobody", "GET", "/blobs/b", nil, 404, "BlobNotFound"},
		{"nobody", "PUT", "/blobs/b", blobType, 401, "NoAuthenticationInformation"},
		{"nobody", "PUT", "/mine?restype=container", nil, 401, "NoAuthenticationInformation"},
		{"nobody", "DELETE", "/blobs/a", nil, 401, "NoAuthenticationInformation"},
		{"nobody", "GET", "/?comp=list", nil, 401, "NoAuthenticationInformation"},
		{"nobody", "GET", "/private/a?sv=2021-08-06&sig=x", nil, 403, "KeyBasedAuthenticationNotPermitted"},
		{"nobody", "GET", "/private/a", map[string]string{"Authorization": "SharedKey " + account + ":x"}, 403, "KeyBasedAuthenticationNotPermitted"},
		{"stranger", "GET", "/private/a", nil, 403, "AuthorizationPermissionMismatch"},
		{"reader", "GET", "/private/a", nil, 200, ""},
		{"reader", "PUT", "/private/a", blobType, 403, "AuthorizationPermissionMismatch"},
		{"reader", "PUT", "/mine?restype=container", nil, 403, "AuthorizationPermissionMismatch"},
		{"writer", "PUT", "/private/a", blobType, 201, ""},
		{"writer", "PUT", "/blobs/a", blobType, 403, "AuthorizationPermissionMismatch"},
		{"writer", "PUT", "/private?restype=container&comp=acl", map[string]string{"x-ms-blob-public-access": "blob"}, 403, "AuthorizationPermissionMismatch"},
		{"owner of resources", "GET", "/private/a", nil, 403, "AuthorizationPermissionMismatch"},
		{"arm", "GET", "/private/a", nil, 401, "InvalidAuthenticationInfo"},
		{"forged", "GET", "/private/a", nil, 401, "InvalidAuthenticationInfo"},
		{"reader", "GET", "/private/%2e%2e/blobs/a", nil, 400, "InvalidUri"},
		{"reader", "GET", "/Private/a", nil, 400, "InvalidResourceName"},
		{"reader", "POST", "/private/a", nil, 405, "UnsupportedHttpVerb"},
		{"reader", "GET", "/private/a?comp=tags", nil, 400, "InvalidQueryParameterValue"},
		{"writer", "PUT", "/private/p", map[string]string{"x-ms-blob-type": "PageBlob"}, 400, "InvalidHeaderValue"},
	} {
		t.Run(fmt.Sprintf("%s: %s %s", tt.who, tt.method, tt.path), func(t *testing.T) {
			r := f.send(tt.method, tt.path, nil, tt.header, tokens[tt.who])
			body, _ := io.ReadAll(r.Body)
			if r.StatusCode != tt.status || r.Header.Get("x-ms-error-code") != tt.code || tt.code != "" && !strings.Contains(string(body), "<Code>"+tt.code+"</Code>") {
				t.Errorf("%d %v %s, want %d %s", r.StatusCode, r.Header, body, tt.status, tt.code)
			}
			if tt.status == 401 && r.Header.Get("WWW-Authenticate") != "Bearer authorization_uri=https://login.microsoftonline.com/"+f.Tenant.ID+"/oauth2/authorize resource_id=https://storage.azure.com" {
				t.Errorf("challenge: %v", r.Header)
			}
		})
	}
	f.Do(http.MethodPatch, f.id, map[string]any{"properties": map[string]any{"allowBlobPublicAccess": false}}, nil)
	if r := f.send("GET", "/blobs/a", nil, nil, ""); r.StatusCode != 409 || r.Header.Get("x-ms-error-code") != "PublicAccessNotPermitted" {
		t.Errorf("after the account was closed: %d %v", r.StatusCode, r.Header)
	}
	if log := f.Log.String(); !strings.Contains(log, "blob request refused") || strings.Contains(log, token) {
		t.Errorf("log: %s", log)
	}
}
