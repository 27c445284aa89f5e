package blob

import (
	"encoding/base64"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

const (
	maxBlocks  = 50000
	maxBlockID = 64 // bytes, decoded
)

// blockKey is where an uncommitted block of the request's blob is stored; all with "".
func (c *call) blockKey(id string) string { return c.blobKey(c.blob) + "\x00" + id }

func validBlock(id string) bool {
	raw, err := base64.StdEncoding.DecodeString(id)
	return err == nil && len(raw) > 0 && len(raw) <= maxBlockID
}

// putBlock is Put Block: a piece that becomes part of the blob with Put Block List.
func (c *call) putBlock() (answer, error) {
	id := c.query.Get("blockid")
	if !validBlock(id) {
		return answer{}, badRequest("InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid: blockid must be base64 of 1 to %d bytes.", maxBlockID)
	}
	sum, err := c.checkMD5()
	if err != nil {
		return answer{}, err
	}
	if _, err := c.mustContainer(); err != nil {
		return answer{}, err
	}
	staged, err := state.List[Part](c.tx, bucketBlocks, c.blockKey(""))
	if err != nil {
		return answer{}, err
	}
	size := int64(len(c.body))
	for _, p := range staged {
		if p.Block != id {
			size += p.Size
		}
		if len(p.Block) != len(id) {
			return answer{}, badRequest("InvalidBlobOrBlock", "The specified blob or block content is invalid: all block ids of a blob have the same length.")
		}
	}
	if size > MaxBlob || len(staged) >= maxBlocks {
		return answer{}, fault(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", "The request body is too large and exceeds the maximum permissible limit: a blob has at most %d bytes in this cloud.", MaxBlob)
	}
	if err := clearBlocks(c.tx, c.blockKey(id), nil); err != nil {
		return answer{}, err
	}
	part, err := keep(c.tx, id, c.body)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: http.StatusCreated, header: http.Header{"Content-Md5": {base64.StdEncoding.EncodeToString(sum)}, "X-Ms-Request-Server-Encrypted": {"true"}}}
	return a, state.Put(c.tx, bucketBlocks, c.blockKey(id), part)
}

// readBlockList reads the body of Put Block List: where to look for a block, and its id, in order.
func readBlockList(body []byte) (list [][2]string, err error) {
	d := xml.NewDecoder(strings.NewReader(string(body)))
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, badRequest("InvalidXmlDocument", "XML specified is not syntactically valid.")
		}
		start, ok := t.(xml.StartElement)
		if !ok || start.Name.Local == "BlockList" {
			continue
		}
		var id string
		if err := d.DecodeElement(&id, &start); err != nil {
			return nil, badRequest("InvalidXmlDocument", "XML specified is not syntactically valid.")
		}
		list = append(list, [2]string{start.Name.Local, strings.TrimSpace(id)})
		if len(list) > maxBlocks {
			return nil, badRequest("BlockListTooLong", "The block list may not contain more than 50,000 blocks.")
		}
	}
}

// putBlockList is Put Block List: the blob becomes the blocks of the list.
func (c *call) putBlockList() (answer, error) {
	if _, err := c.checkMD5(); err != nil {
		return answer{}, err
	}
	list, err := readBlockList(c.body)
	if err != nil {
		return answer{}, err
	}
	old, exists, err := c.find()
	if err != nil {
		return answer{}, err
	}
	if err := c.conditions(old, exists); err != nil {
		return answer{}, err
	}
	var parts []Part
	var size int64
	for _, entry := range list {
		p, err := c.block(entry[0], entry[1], old)
		if err != nil {
			return answer{}, err
		}
		parts = append(parts, p)
		size += p.Size
	}
	if size > MaxBlob {
		return answer{}, fault(http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", "The request body is too large and exceeds the maximum permissible limit: a blob has at most %d bytes in this cloud.", MaxBlob)
	}
	c.header.Del("Content-Type") // it is that of the list
	h, err := c.headers()
	if err != nil {
		return answer{}, err
	}
	return c.replace(old, exists, parts, h)
}

// block finds a block of the list.
func (c *call) block(where, id string, old Blob) (Part, error) {
	invalid := badRequest("InvalidBlockList", "The specified block list is invalid.")
	if !validBlock(id) {
		return Part{}, invalid
	}
	if where == "Uncommitted" || where == "Latest" {
		if p, ok, err := state.Get[Part](c.tx, bucketBlocks, c.blockKey(id)); ok || err != nil {
			return p, err
		}
	}
	if where == "Committed" || where == "Latest" {
		if i := slices.IndexFunc(old.Parts, func(p Part) bool { return p.Block == id }); i >= 0 {
			return old.Parts[i], nil
		}
	}
	return Part{}, invalid
}

func (c *call) getBlockList() (answer, error) {
	b, exists, err := c.find()
	if err != nil {
		return answer{}, err
	}
	staged, err := state.List[Part](c.tx, bucketBlocks, c.blockKey(""))
	if err != nil {
		return answer{}, err
	}
	if !exists && len(staged) == 0 {
		return answer{}, fault(http.StatusNotFound, "BlobNotFound", "The specified blob does not exist.")
	}
	type block struct {
		Name string
		Size int64
	}
	body := struct {
		XMLName     xml.Name `xml:"BlockList"`
		Committed   []block  `xml:"CommittedBlocks>Block"`
		Uncommitted []block  `xml:"UncommittedBlocks>Block"`
	}{}
	which := c.query.Get("blocklisttype")
	for _, p := range b.Parts {
		if p.Block != "" && which != "uncommitted" {
			body.Committed = append(body.Committed, block{p.Block, p.Size})
		}
	}
	for _, p := range staged {
		if which == "uncommitted" || which == "all" {
			body.Uncommitted = append(body.Uncommitted, block{p.Block, p.Size})
		}
	}
	a := answer{status: http.StatusOK, xml: body}
	if exists {
		a.header = tagged(b.ETag, b.Modified)
	}
	return a, nil
}
