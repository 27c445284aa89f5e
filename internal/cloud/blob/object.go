package blob

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// A Blob is a block blob.
type Blob struct {
	Name              string
	Parts             []Part
	Size              int64
	ETag              string
	Created, Modified time.Time
	Headers           Headers
	Metadata          map[string]string `json:",omitempty"`
}

// Headers are what a blob says of itself when it is read.
type Headers struct {
	ContentType  string `json:",omitempty"`
	Encoding     string `json:",omitempty"`
	Language     string `json:",omitempty"`
	Disposition  string `json:",omitempty"`
	CacheControl string `json:",omitempty"`
	MD5          []byte `json:",omitempty"`
}

func (c *call) find() (Blob, bool, error) {
	if _, err := c.mustContainer(); err != nil {
		return Blob{}, false, err
	}
	return state.Get[Blob](c.tx, bucketBlobs, c.blobKey(c.blob))
}

// must finds the blob and applies the conditions of a request that reads or changes one that is there.
func (c *call) must() (Blob, error) {
	b, ok, err := c.find()
	if err == nil && !ok {
		err = fault(http.StatusNotFound, "BlobNotFound", "The specified blob does not exist.")
	}
	if err == nil {
		err = c.conditions(b, true)
	}
	return b, err
}

// conditions applies If-Match and its like (RFC 9110, section 13). A blob that does not exist matches no tag.
func (c *call) conditions(b Blob, exists bool) error {
	matches := func(tags string) bool {
		if !exists {
			return false
		}
		for t := range strings.SplitSeq(tags, ",") {
			if t = strings.TrimSpace(t); t == "*" || strings.Trim(t, `"`) == strings.Trim(b.ETag, `"`) {
				return true
			}
		}
		return false
	}
	failed := fault(http.StatusPreconditionFailed, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
	reads := c.operation.action == readBlob
	if tags := c.header.Get("If-Match"); tags != "" && !matches(tags) {
		return failed
	}
	if t, err := http.ParseTime(c.header.Get("If-Unmodified-Since")); err == nil && exists && b.Modified.Truncate(time.Second).After(t) {
		return failed
	}
	tags := c.header.Get("If-None-Match")
	switch {
	case tags != "" && matches(tags) && reads:
		failed.Status = http.StatusNotModified
		return failed
	case tags == "*" && exists:
		return fault(http.StatusConflict, "BlobAlreadyExists", "The specified blob already exists.")
	case tags != "" && matches(tags):
		return failed
	}
	if t, err := http.ParseTime(c.header.Get("If-Modified-Since")); tags == "" && err == nil && exists && !b.Modified.Truncate(time.Second).After(t) {
		if reads {
			failed.Status = http.StatusNotModified
		}
		return failed
	}
	return nil
}

// headers reads what the blob should say of itself. Content-Type without its own header counts too.
func (c *call) headers() (Headers, error) {
	h := Headers{
		ContentType: c.header.Get("x-ms-blob-content-type"), Encoding: c.header.Get("x-ms-blob-content-encoding"),
		Language: c.header.Get("x-ms-blob-content-language"), Disposition: c.header.Get("x-ms-blob-content-disposition"),
		CacheControl: c.header.Get("x-ms-blob-cache-control"),
	}
	if h.ContentType == "" {
		h.ContentType = c.header.Get("Content-Type")
	}
	if h.ContentType == "" {
		h.ContentType = "application/octet-stream"
	}
	sum := c.header.Get("x-ms-blob-content-md5")
	if sum == "" {
		return h, nil
	}
	var err error
	if h.MD5, err = decodeMD5(sum); err != nil {
		return h, err
	}
	return h, nil
}

func decodeMD5(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != md5.Size {
		return nil, badRequest("InvalidMd5", "The MD5 value specified in the request is invalid. MD5 value must be 128 bits and base64 encoded.")
	}
	return b, nil
}

// checkMD5 compares the body with what its sender says about it, and returns the sum.
func (c *call) checkMD5() ([]byte, error) {
	sum := md5.Sum(c.body)
	if want := c.header.Get("Content-MD5"); want != "" {
		b, err := decodeMD5(want)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(b, sum[:]) {
			return nil, badRequest("Md5Mismatch", "The MD5 value specified in the request did not match with the MD5 value calculated by the server.")
		}
	}
	return sum[:], nil
}

// put is Put Blob: the whole content in one request.
func (c *call) put() (answer, error) {
	if kind := c.header.Get("x-ms-blob-type"); kind != "BlockBlob" {
		return answer{}, badRequest("InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format: x-ms-blob-type must be BlockBlob, not '%.50s'.", kind)
	}
	if c.header.Get("x-ms-copy-source") != "" {
		return answer{}, badRequest("UnsupportedHeader", "One of the HTTP headers specified in the request is not supported: x-ms-copy-source.")
	}
	sum, err := c.checkMD5()
	if err != nil {
		return answer{}, err
	}
	h, err := c.headers()
	if err != nil {
		return answer{}, err
	}
	if h.MD5 == nil {
		h.MD5 = sum
	} else if !bytes.Equal(h.MD5, sum) {
		return answer{}, badRequest("Md5Mismatch", "The MD5 value specified in the request did not match with the MD5 value calculated by the server.")
	}
	old, exists, err := c.find()
	if err != nil {
		return answer{}, err
	}
	if err := c.conditions(old, exists); err != nil {
		return answer{}, err
	}
	part, err := keep(c.tx, "", c.body)
	if err != nil {
		return answer{}, err
	}
	a, err := c.replace(old, exists, []Part{part}, h)
	if err == nil {
		a.header.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum))
	}
	return a, err
}

// replace stores a blob in the place of what was there, and forgets its uncommitted blocks.
func (c *call) replace(old Blob, exists bool, parts []Part, h Headers) (answer, error) {
	b := Blob{Name: c.blob, Parts: parts, ETag: newETag(), Created: c.now, Modified: c.now, Headers: h, Metadata: metadata(c.header)}
	for _, p := range parts {
		b.Size += p.Size
	}
	if exists {
		b.Created = old.Created
	}
	if err := discard(c.tx, old.Parts, parts); err != nil {
		return answer{}, err
	}
	if err := clearBlocks(c.tx, c.blockKey(""), parts); err != nil {
		return answer{}, err
	}
	a := answer{status: http.StatusCreated, header: tagged(b.ETag, b.Modified)}
	a.header.Set("x-ms-request-server-encrypted", "true")
	return a, state.Put(c.tx, bucketBlobs, c.blobKey(c.blob), b)
}

// get is Get Blob and Get Blob Properties.
func (c *call) get() (answer, error) {
	b, err := c.must()
	if err != nil {
		return answer{}, err
	}
	a := answer{status: http.StatusOK, header: tagged(b.ETag, b.Modified)}
	showMetadata(a.header, b.Metadata)
	if c.query.Get("comp") == "metadata" {
		return a, nil
	}
	start, end, part, err := c.span(b.Size)
	if err != nil {
		return answer{}, err
	}
	for name, v := range map[string]string{
		"Content-Type": b.Headers.ContentType, "Content-Encoding": b.Headers.Encoding, "Content-Language": b.Headers.Language,
		"Content-Disposition": b.Headers.Disposition, "Cache-Control": b.Headers.CacheControl,
		"x-ms-blob-type": "BlockBlob", "x-ms-creation-time": b.Created.Format(http.TimeFormat), "x-ms-lease-state": "available",
		"x-ms-lease-status": "unlocked", "x-ms-server-encrypted": "true", "Accept-Ranges": "bytes", "Content-Length": strconv.FormatInt(end-start, 10),
	} {
		if v != "" {
			a.header.Set(name, v)
		}
	}
	sum := base64.StdEncoding.EncodeToString(b.Headers.MD5)
	if part {
		a.status = http.StatusPartialContent
		a.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, end-1, b.Size))
		if sum != "" {
			a.header.Set("x-ms-blob-content-md5", sum)
		}
	} else if sum != "" {
		a.header.Set("Content-MD5", sum)
	}
	a.content, err = read(c.tx, b.Parts, start, end)
	return a, err
}

// span is the part of the blob that the request asks for, as the bytes from start to before end. A part may be all of it: a reader
// that asks for the first 32 MiB learns the size of the blob from Content-Range, which only an answer with a part has.
func (c *call) span(size int64) (start, end int64, part bool, err error) {
	text := c.header.Get("x-ms-range")
	if text == "" {
		text = c.header.Get("Range")
	}
	if text == "" {
		return 0, size, false, nil
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
	start, errStart := strconv.ParseInt(first, 10, 64)
	if !strings.HasPrefix(text, "bytes=") || !ok || errStart != nil || start < 0 {
		return 0, size, false, nil // a range that is not understood is ignored (RFC 9110, section 14.2)
	}
	end = size
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < start {
			return 0, size, false, nil
		}
		if n < size-1 {
			end = n + 1
		}
	}
	if start >= size {
		return 0, 0, false, fault(http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "The range specified is invalid for the current size of the resource.")
	}
	return start, end, true, nil
}

// setProperties replaces what the blob says of itself.
func (c *call) setProperties() (answer, error) {
	b, err := c.must()
	if err != nil {
		return answer{}, err
	}
	c.header.Del("Content-Type") // it is about this request
	h, err := c.headers()
	if err != nil {
		return answer{}, err
	}
	b.Headers = h
	return c.touch(b)
}

func (c *call) setMetadata() (answer, error) {
	b, err := c.must()
	if err != nil {
		return answer{}, err
	}
	b.Metadata = metadata(c.header)
	return c.touch(b)
}

func (c *call) touch(b Blob) (answer, error) {
	b.ETag, b.Modified = newETag(), c.now
	return answer{status: http.StatusOK, header: tagged(b.ETag, b.Modified)}, state.Put(c.tx, bucketBlobs, c.blobKey(c.blob), b)
}

func (c *call) delete() (answer, error) {
	b, err := c.must()
	if err != nil {
		return answer{}, err
	}
	if err := discard(c.tx, b.Parts, nil); err != nil {
		return answer{}, err
	}
	a := answer{status: http.StatusAccepted, header: http.Header{"X-Ms-Delete-Type-Permanent": {"true"}}}
	return a, state.Delete(c.tx, bucketBlobs, c.blobKey(c.blob))
}
