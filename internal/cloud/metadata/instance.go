package metadata

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
)

// versions are the api versions of the instance document, oldest first.
func versions() []string {
	return []string{
		"2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01", "2018-02-01", "2018-04-02", "2018-10-01", "2019-02-01", "2019-03-11",
		"2019-04-30", "2019-06-01", "2019-06-04", "2019-08-01", "2019-08-15", "2019-11-01", "2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01",
		"2020-12-01", "2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01", "2021-10-01", "2021-11-01", "2021-11-15", "2021-12-13",
	}
}

// An instanceError is an answer about the instance document that is no success.
type instanceError struct {
	status  int
	Message string   `json:"error"`
	Newest  []string `json:"newest-versions,omitempty"`
}

func (e *instanceError) Error() string { return fmt.Sprintf("%d %s", e.status, e.Message) }

func newest() []string {
	v := versions()
	slices.Reverse(v)
	return v[:3]
}

// serveInstance answers /metadata/instance and the paths below it, which lead into the document. All values in it are
// strings.
func (s *Server) serveInstance(w http.ResponseWriter, r *http.Request, machineID, path string) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &instanceError{status: http.StatusBadRequest, Message: "Bad request. The query string is malformed."}
	}
	switch version := query.Get("api-version"); {
	case version == "":
		return &instanceError{status: http.StatusBadRequest, Message: "Bad request. api-version was not specified in the request. For more information refer to aka.ms/azureimds", Newest: newest()}
	case !slices.Contains(versions(), version):
		return &instanceError{status: http.StatusBadRequest, Message: "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds", Newest: newest()}
	}
	m, err := s.machine(machineID)
	if err != nil {
		return err
	}
	node := document(m)
	rest := strings.TrimPrefix(strings.TrimPrefix(path, "/metadata/instance"), "/")
	for _, segment := range strings.Split(rest, "/") {
		if segment == "" {
			continue
		}
		object, _ := node.(map[string]any)
		if node = member(object, segment); node == nil {
			return &instanceError{status: http.StatusNotFound, Message: "Not found"}
		}
	}
	return writeNode(w, node, query.Get("format"))
}

// member finds a member by name; paths ignore case.
func member(object map[string]any, name string) any {
	for k, v := range object {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return nil
}

func writeNode(w http.ResponseWriter, node any, format string) error {
	text, leaf := node.(string)
	switch strings.ToLower(format) {
	case "text":
		if object, ok := node.(map[string]any); ok {
			text = strings.Join(directoryOf(object), "\n")
		} else if !leaf {
			return &instanceError{status: http.StatusBadRequest, Message: "Bad request. This node has no text form; use format=json"}
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write([]byte(text)) // the client is gone: nobody is left to tell
		return nil
	case "", "json":
		writeJSON(w, http.StatusOK, node)
		return nil
	}
	return &instanceError{status: http.StatusBadRequest, Message: "Bad request. The format must be json or text"}
}

// directoryOf lists the members of an object, those that lead on with a slash.
func directoryOf(object map[string]any) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if _, leaf := object[name].(string); !leaf {
			name += "/"
		}
		names = append(names, name)
	}
	return names
}

func document(m compute.Machine) any {
	tags := []any{}
	var joined []string
	for _, k := range slices.Sorted(maps.Keys(m.Tags)) {
		tags = append(tags, map[string]any{"name": k, "value": m.Tags[k]})
		joined = append(joined, k+":"+m.Tags[k])
	}
	return map[string]any{"compute": map[string]any{
		"azEnvironment": "AzurePublicCloud", "location": m.Location, "name": m.Name, "osType": "Linux", "provider": "Microsoft.Compute",
		"resourceGroupName": m.ID.ResourceGroup, "resourceId": m.ID.String(), "subscriptionId": m.ID.SubscriptionID,
		"tags": strings.Join(joined, ";"), "tagsList": tags, "vmId": m.VMID, "vmScaleSetName": m.ScaleSet, "vmSize": m.Size, "zone": m.Zone,
	}, "network": map[string]any{"interface": []any{}}}
}
