package blob

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// An operation is what a request asks for.
type operation struct {
	action string // of RBAC, below blobServices/
	data   bool   // whether that is a data action
	// public is the least access level with which a container lets nobody do this; accessNone: never.
	public  string
	handler func(*call) (answer, error)
}

// The access levels of a container.
const (
	accessNone      = ""
	accessBlob      = "blob"      // blobs can be read by whoever knows their name
	accessContainer = "container" // and listed
)

const (
	readBlob   = "containers/blobs/read"
	writeBlob  = "containers/blobs/write"
	deleteBlob = "containers/blobs/delete"
)

// operations are keyed by method, what it is about, and comp.
// Source: https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory
func operations() map[string]operation {
	read := operation{readBlob, true, accessBlob, (*call).get}
	properties := operation{"containers/read", false, accessContainer, (*call).getContainer}
	return map[string]operation{
		"GET account list": {"containers/read", false, accessNone, (*call).listContainers},

		"PUT container ":     {"containers/write", false, accessNone, (*call).createContainer},
		"GET container ":     properties,
		"HEAD container ":    properties,
		"DELETE container ":  {"containers/delete", false, accessNone, (*call).deleteContainer},
		"GET container list": {readBlob, true, accessContainer, (*call).list},
		"GET container acl":  {"containers/getAcl/action", false, accessNone, (*call).getContainer},
		"PUT container acl":  {"containers/setAcl/action", false, accessNone, (*call).setAccess},

		"GET blob ":           read,
		"HEAD blob ":          read,
		"GET blob metadata":   read,
		"PUT blob ":           {writeBlob, true, accessNone, (*call).put},
		"PUT blob block":      {writeBlob, true, accessNone, (*call).putBlock},
		"PUT blob blocklist":  {writeBlob, true, accessNone, (*call).putBlockList},
		"GET blob blocklist":  {readBlob, true, accessBlob, (*call).getBlockList},
		"PUT blob properties": {writeBlob, true, accessNone, (*call).setProperties},
		"PUT blob metadata":   {writeBlob, true, accessNone, (*call).setMetadata},
		"DELETE blob ":        {deleteBlob, true, accessNone, (*call).delete},
	}
}

var validContainer = regexp.MustCompile(`^(\$web|[a-z0-9](-?[a-z0-9])*)$`)

const maxBlobName = 1024

// locate finds the operation. path is not escaped; a blob's name may have slashes in it.
func (c *call) locate(method, path string) error {
	kind := "account"
	if path != "/" {
		var isBlob bool
		c.container, c.blob, isBlob = strings.Cut(strings.TrimPrefix(path, "/"), "/")
		if kind = "container"; isBlob && c.blob != "" {
			kind = "blob"
		}
		if len(c.container) < 3 || len(c.container) > 63 || !validContainer.MatchString(c.container) {
			return badRequest("InvalidResourceName", "The specified resource name contains invalid characters: '%.100s' is not a container's name (3 to 63 lower-case letters, digits and single dashes).", c.container)
		}
		if utf8.RuneCountInString(c.blob) > maxBlobName || !utf8.ValidString(c.blob) || strings.ContainsFunc(c.blob, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return badRequest("InvalidResourceName", "The specified resource name contains invalid characters or is longer than %d.", maxBlobName)
		}
		for segment := range strings.SplitSeq(c.blob, "/") {
			// Clients and proxies clean such a path: it would not name the same blob everywhere.
			if segment == "." || segment == ".." {
				return badRequest("InvalidUri", "The requested URI does not represent any resource on the server: '.' and '..' are no part of a blob's name.")
			}
		}
	}
	if restype := c.query.Get("restype"); (restype == "container") != (kind == "container") && restype != "" || kind == "container" && restype == "" {
		return badRequest("InvalidUri", "The requested URI does not represent any resource on the server: a container is asked for with restype=container, a blob is /CONTAINER/NAME.")
	}
	comp := c.query.Get("comp")
	all := operations()
	op, ok := all[method+" "+kind+" "+comp]
	switch {
	case ok:
		c.operation = op
		return nil
	case slices.ContainsFunc([]string{http.MethodGet, http.MethodPut, http.MethodDelete}, func(m string) bool { _, ok := all[m+" "+kind+" "+comp]; return ok }):
		return fault(http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "The resource doesn't support specified Http Verb.")
	}
	return badRequest("InvalidQueryParameterValue", "Value for one of the query parameters specified in the request URI is invalid: comp=%.50s is not served by this cloud.", comp)
}
