package blob

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Buckets of the state that this package owns. Accounts are known by their UniqueID.
const (
	bucketContainers = "blobContainers" // by account/container          -> Container
	bucketBlobs      = "blobs"          // by account/container/blob     -> Blob
	bucketBlocks     = "blobBlocks"     // by account/container/blob\x00id -> Part: uncommitted
	bucketContent    = "blobContent"    // by a part's content id/index  -> at most chunk bytes
)

// A Container is the home of blobs.
type Container struct {
	Name     string
	Access   string `json:",omitempty"` // accessNone, accessBlob or accessContainer
	ETag     string
	Modified time.Time
	Metadata map[string]string `json:",omitempty"`
}

func containerKey(unique, name string) string { return unique + "/" + name }

func (c *call) findContainer() (Container, bool, error) {
	return state.Get[Container](c.tx, bucketContainers, containerKey(c.account.UniqueID, c.container))
}

func (c *call) mustContainer() (Container, error) {
	have, ok, err := c.findContainer()
	if err == nil && !ok {
		err = fault(http.StatusNotFound, "ContainerNotFound", "The specified container does not exist.")
	}
	return have, err
}

func (c *call) storeContainer(v Container) error {
	return state.Put(c.tx, bucketContainers, containerKey(c.account.UniqueID, v.Name), v)
}

// access reads the access level that the request asks for.
func (c *call) access() (string, error) {
	level := c.header.Get("x-ms-blob-public-access")
	switch {
	case level != accessNone && level != accessBlob && level != accessContainer:
		return "", badRequest("InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-blob-public-access must be blob or container.")
	case level != accessNone && !c.account.Public:
		return "", fault(http.StatusConflict, "PublicAccessNotPermitted", "Public access is not permitted on this storage account.")
	}
	return level, nil
}

func (c *call) createContainer() (answer, error) {
	level, err := c.access()
	if err != nil {
		return answer{}, err
	}
	if _, exists, err := c.findContainer(); err != nil {
		return answer{}, err
	} else if exists {
		return answer{}, fault(http.StatusConflict, "ContainerAlreadyExists", "The specified container already exists.")
	}
	v := Container{Name: c.container, Access: level, ETag: newETag(), Modified: c.now, Metadata: metadata(c.header)}
	return answer{status: http.StatusCreated, header: tagged(v.ETag, v.Modified)}, c.storeContainer(v)
}

func (c *call) getContainer() (answer, error) {
	v, err := c.mustContainer()
	if err != nil {
		return answer{}, err
	}
	a := answer{status: http.StatusOK, header: tagged(v.ETag, v.Modified)}
	if v.Access != accessNone {
		a.header.Set("x-ms-blob-public-access", v.Access)
	}
	if c.query.Get("comp") == "acl" {
		a.xml = struct {
			XMLName xml.Name `xml:"SignedIdentifiers"`
		}{}
		return a, nil
	}
	a.header.Set("x-ms-lease-state", "available")
	a.header.Set("x-ms-lease-status", "unlocked")
	showMetadata(a.header, v.Metadata)
	return a, nil
}

// setAccess changes the access level. Stored access policies are for signatures, which are not served.
func (c *call) setAccess() (answer, error) {
	v, err := c.mustContainer()
	if err != nil {
		return answer{}, err
	}
	if strings.Contains(string(c.body), "<SignedIdentifier>") {
		return answer{}, badRequest("InvalidXmlDocument", "XML specified is not syntactically valid: this cloud has no stored access policies.")
	}
	if v.Access, err = c.access(); err != nil {
		return answer{}, err
	}
	v.ETag, v.Modified = newETag(), c.now
	return answer{status: http.StatusOK, header: tagged(v.ETag, v.Modified)}, c.storeContainer(v)
}

// deleteContainer deletes a container with all that is in it, at once.
func (c *call) deleteContainer() (answer, error) {
	if _, err := c.mustContainer(); err != nil {
		return answer{}, err
	}
	key := containerKey(c.account.UniqueID, c.container)
	if err := clear(c.tx, key+"/"); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusAccepted}, state.Delete(c.tx, bucketContainers, key)
}

// DeleteAccount removes everything that an account (its UniqueID) holds.
func DeleteAccount(tx *state.Tx, unique string) error {
	if err := clear(tx, unique+"/"); err != nil {
		return err
	}
	keys, err := state.Keys(tx, bucketContainers, unique+"/")
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := state.Delete(tx, bucketContainers, k); err != nil {
			return err
		}
	}
	return nil
}

// clear deletes the blobs and blocks whose keys start with prefix.
func clear(tx *state.Tx, prefix string) error {
	keys, err := state.Keys(tx, bucketBlobs, prefix)
	if err != nil {
		return err
	}
	for _, k := range keys {
		b, _, err := state.Get[Blob](tx, bucketBlobs, k)
		if err != nil {
			return err
		}
		if err := discard(tx, b.Parts, nil); err != nil {
			return err
		}
		if err := state.Delete(tx, bucketBlobs, k); err != nil {
			return err
		}
	}
	return clearBlocks(tx, prefix, nil)
}

func (c *call) listContainers() (answer, error) {
	all, err := state.List[Container](c.tx, bucketContainers, c.account.UniqueID+"/"+c.query.Get("prefix"))
	if err != nil {
		return answer{}, err
	}
	type properties struct {
		Modified string `xml:"Last-Modified"`
		ETag     string `xml:"Etag"`
		Access   string `xml:"PublicAccess,omitempty"`
	}
	type item struct {
		Name       string
		Properties properties
	}
	body := struct {
		XMLName    xml.Name `xml:"EnumerationResults"`
		Endpoint   string   `xml:"ServiceEndpoint,attr"`
		Containers []item   `xml:"Containers>Container"`
		NextMarker string
	}{Endpoint: c.endpoint()}
	for _, v := range all {
		body.Containers = append(body.Containers, item{v.Name, properties{v.Modified.Format(http.TimeFormat), v.ETag, v.Access}})
	}
	return answer{status: http.StatusOK, xml: body}, nil
}

func (c *call) endpoint() string {
	return "https://" + c.account.Name + "." + azure.SuffixBlob + "/"
}

// newETag makes an entity tag that nothing else has.
func newETag() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return `"0x` + strings.ToUpper(hex.EncodeToString(b[:])) + `"`
}

func tagged(etag string, modified time.Time) http.Header {
	return http.Header{"Etag": {etag}, "Last-Modified": {modified.UTC().Format(http.TimeFormat)}}
}

const metadataPrefix = "X-Ms-Meta-"

// metadata reads the names and values that a client gives.
func metadata(h http.Header) map[string]string {
	m := map[string]string{}
	for k, vs := range h {
		if name, ok := strings.CutPrefix(k, metadataPrefix); ok && name != "" && len(vs) > 0 {
			m[strings.ToLower(name)] = vs[0]
		}
	}
	return m
}

func showMetadata(h http.Header, m map[string]string) {
	for k, v := range m {
		h.Set(metadataPrefix+k, v)
	}
}

// blobKey is where a blob of the request's container is stored.
func (c *call) blobKey(name string) string {
	return fmt.Sprintf("%s/%s/%s", c.account.UniqueID, c.container, name)
}
