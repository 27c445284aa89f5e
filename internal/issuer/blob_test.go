package issuer_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/issuer"
)

const service = "https://lanyardoidc." + azure.SuffixBlob

// storage makes an account with a container from which everybody may read.
func storage(t *testing.T) *cloudtest.Cloud {
	t.Helper()
	c := cloudtest.New(t)
	group := "/subscriptions/" + c.Subscription + "/resourceGroups/rg"
	id := group + "/providers/" + azure.TypeStorageAccount + "/lanyardoidc"
	c.Do(http.MethodPut, group, map[string]any{"location": "eastus"}, nil)
	c.Do(http.MethodPut, id, map[string]any{"location": "eastus", "sku": map[string]any{"name": "Standard_LRS"}, "kind": "StorageV2", "properties": map[string]any{"allowBlobPublicAccess": true}}, nil)
	c.Do(http.MethodPut, id+"/providers/"+azure.TypeRoleAssignment+"/00000000-0000-0000-0000-000000000001", map[string]any{"properties": map[string]any{
		"roleDefinitionId": "/subscriptions/" + c.Subscription + "/providers/" + azure.TypeRoleDefinition + "/" + azure.RoleStorageBlobDataOwner, "principalId": c.OwnerSP.ID,
	}}, nil)
	client, err := azblob.NewClient(service, c.Owner(), &azblob.ClientOptions{ClientOptions: c.Options()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CreateContainer(t.Context(), "oidc", &azblob.CreateContainerOptions{Access: to.Ptr(azblob.PublicAccessTypeBlob)}); err != nil {
		t.Fatal(err)
	}
	return c
}

func documents(t *testing.T, name string) issuer.Documents {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	k, err := issuer.NewKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return issuer.Documents{Issuer: name, Keys: []issuer.Key{k}}
}

func TestDocumentsInBlobStorageAreForEverybody(t *testing.T) {
	c := storage(t)
	d := documents(t, service+"/oidc/cluster-1/")
	b, err := issuer.NewBlob(strings.TrimSuffix(d.Issuer, "/"), azure.SuffixBlob, c.Owner(), c.Options())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if changed, err := issuer.Publish(t.Context(), b, d, issuer.Permission{}); err != nil || changed != want {
			t.Fatalf("changed %t, %v", changed, err)
		}
	}
	keys, err := d.KeysJSON()
	if err != nil {
		t.Fatal(err)
	}
	// As Entra reads: without credentials, from the issuer's own URL.
	o := c.Options()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, issuer.KeysURL(d.Issuer), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := o.Transport.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || string(body) != string(keys) || res.Header.Get("Content-Type") != "application/json" || !strings.Contains(res.Header.Get("Cache-Control"), "max-age") {
		t.Errorf("%d %v %s", res.StatusCode, res.Header, body)
	}

	t.Run("what somebody else wrote meanwhile is not overwritten", func(t *testing.T) {
		was, err := b.Read(t.Context())
		if err != nil || was.KeysVersion == "" {
			t.Fatalf("%+v, %v", was, err)
		}
		other := documents(t, d.Issuer)
		other.Keys = append(other.Keys, d.Keys...)
		if _, err := issuer.Publish(t.Context(), b, other, issuer.Permission{}); err != nil {
			t.Fatal(err)
		}
		if err := b.Write(t.Context(), issuer.KeysPath, keys, was.KeysVersion); !errors.Is(err, issuer.ErrChanged) {
			t.Errorf("an old version: %v", err)
		}
		if err := b.Write(t.Context(), issuer.KeysPath, keys, ""); !errors.Is(err, issuer.ErrChanged) {
			t.Errorf("as if nothing were there: %v", err)
		}
	})
	t.Run("another cluster's documents stay", func(t *testing.T) {
		var guard *issuer.Guard
		if _, err := issuer.Publish(t.Context(), b, documents(t, d.Issuer), issuer.Permission{}); !errors.As(err, &guard) {
			t.Errorf("%v", err)
		}
	})
	t.Run("who has no role is told which", func(t *testing.T) {
		_, stranger := c.Application("stranger")
		b, err := issuer.NewBlob(service+"/oidc", azure.SuffixBlob, stranger, c.Options())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Write(t.Context(), issuer.KeysPath, keys, ""); err == nil || !strings.Contains(err.Error(), "Storage Blob Data Contributor") {
			t.Errorf("%v", err)
		}
	})
	t.Run("a container that is not there", func(t *testing.T) {
		b, err := issuer.NewBlob(service+"/none", azure.SuffixBlob, c.Owner(), c.Options())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := issuer.Publish(t.Context(), b, d, issuer.Permission{}); err == nil || !strings.Contains(err.Error(), "no such container") {
			t.Errorf("%v", err)
		}
	})
	if !json.Valid(body) {
		t.Error("not JSON")
	}
}

func TestTokensGoToBlobStorageOnly(t *testing.T) {
	for place, want := range map[string]string{
		service + "/oidc":     "",
		service + "/oidc/":    "",
		service + "/oidc/a/b": "",
		service + "/$web":     "",
		"http://lanyardoidc.blob.core.windows.net/oidc": "https://",
		service:                                      "names no container",
		service + "/O":                               "names no container",
		"https://blob.core.windows.net/oidc":         "host",
		"https://a.b.blob.core.windows.net/oidc":     "host",
		"https://lanyardoidc.blob.evil.example/oidc": "host",
		"https://lanyardoidc.blob.core.windows.net.evil.example/oidc":  "host",
		"https://lanyardoidc.blob.core.windows.net:8443/oidc":          "port",
		service + "/oidc/../other":                                     "..",
		service + "/oidc//x":                                           "empty",
		service + "/oidc?sig=c2VjcmV0":                                 "a SAS is not used",
		"https://user:c2VjcmV0@lanyardoidc.blob.core.windows.net/oidc": "a SAS is not used",
	} {
		_, err := issuer.ParseBlobURL(place, azure.SuffixBlob)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "c2VjcmV0")) {
			t.Errorf("%s: %v, want %q", place, err, want)
		}
	}
}
