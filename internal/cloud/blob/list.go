package blob

import (
	"encoding/base64"
	"encoding/xml"
	"net/http"
	"strconv"
	"strings"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const maxResults = 5000

type listedProperties struct {
	Created      string `xml:"Creation-Time"`
	Modified     string `xml:"Last-Modified"`
	ETag         string `xml:"Etag"`
	Size         int64  `xml:"Content-Length"`
	ContentType  string `xml:"Content-Type"`
	Encoding     string `xml:"Content-Encoding"`
	Language     string `xml:"Content-Language"`
	MD5          string `xml:"Content-MD5"`
	CacheControl string `xml:"Cache-Control"`
	Disposition  string `xml:"Content-Disposition"`
	Type         string `xml:"BlobType"`
	LeaseStatus  string
	LeaseState   string
	Encrypted    bool `xml:"ServerEncrypted"`
}

type listedBlob struct {
	Name       string
	Properties listedProperties
}

type listedPrefix struct{ Name string }

type blobList struct {
	XMLName    xml.Name       `xml:"EnumerationResults"`
	Endpoint   string         `xml:"ServiceEndpoint,attr"`
	Container  string         `xml:"ContainerName,attr"`
	Prefix     string         `xml:"Prefix,omitempty"`
	Marker     string         `xml:"Marker,omitempty"`
	MaxResults int            `xml:"MaxResults,omitempty"`
	Delimiter  string         `xml:"Delimiter,omitempty"`
	Blobs      []listedBlob   `xml:"Blobs>Blob"`
	Prefixes   []listedPrefix `xml:"Blobs>BlobPrefix"`
	NextMarker string
}

// list is List Blobs: by prefix, in the order of names, with a delimiter only what is before it.
func (c *call) list() (answer, error) {
	if _, err := c.mustContainer(); err != nil {
		return answer{}, err
	}
	body := blobList{Endpoint: c.endpoint(), Container: c.container, Prefix: c.query.Get("prefix"), Marker: c.query.Get("marker"), Delimiter: c.query.Get("delimiter")}
	limit := maxResults
	if text := c.query.Get("maxresults"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return answer{}, badRequest("OutOfRangeQueryParameterValue", "One of the query parameters specified in the request URI is outside the permissible range: maxresults.")
		}
		limit, body.MaxResults = min(n, maxResults), n
	}
	after, err := base64.RawURLEncoding.DecodeString(body.Marker)
	if err != nil {
		return answer{}, badRequest("InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid: marker.")
	}
	keys, err := state.Keys(c.tx, bucketBlobs, c.blobKey(body.Prefix))
	if err != nil {
		return answer{}, err
	}
	last := string(after) // a name, or a prefix with its delimiter
	for _, key := range keys {
		name := strings.TrimPrefix(key, c.blobKey(""))
		if name <= last || body.Delimiter != "" && last != "" && strings.HasSuffix(last, body.Delimiter) && strings.HasPrefix(name, last) {
			continue
		}
		if len(body.Blobs)+len(body.Prefixes) == limit {
			body.NextMarker = base64.RawURLEncoding.EncodeToString([]byte(last))
			break
		}
		if head, _, cut := strings.Cut(strings.TrimPrefix(name, body.Prefix), body.Delimiter); body.Delimiter != "" && cut {
			last = body.Prefix + head + body.Delimiter
			body.Prefixes = append(body.Prefixes, listedPrefix{last})
			continue
		}
		b, _, err := state.Get[Blob](c.tx, bucketBlobs, key)
		if err != nil {
			return answer{}, err
		}
		last = name
		body.Blobs = append(body.Blobs, listedBlob{Name: name, Properties: listedProperties{
			Created: b.Created.Format(http.TimeFormat), Modified: b.Modified.Format(http.TimeFormat), ETag: strings.Trim(b.ETag, `"`), Size: b.Size,
			ContentType: b.Headers.ContentType, Encoding: b.Headers.Encoding, Language: b.Headers.Language,
			MD5: base64.StdEncoding.EncodeToString(b.Headers.MD5), CacheControl: b.Headers.CacheControl, Disposition: b.Headers.Disposition,
			Type: "BlockBlob", LeaseStatus: "unlocked", LeaseState: "available", Encrypted: true,
		}})
	}
	return answer{status: http.StatusOK, xml: body}, nil
}
