package metadata

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
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
		if node = member(node, segment); node == nil {
			return &instanceError{status: http.StatusNotFound, Message: "Not found"}
		}
	}
	return writeNode(w, node, query.Get("format"))
}

// member finds a member by name, without case, or an element by its index.
func member(node any, name string) any {
	switch node := node.(type) {
	case map[string]any:
		for k, v := range node {
			if strings.EqualFold(k, name) {
				return v
			}
		}
	case []any:
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(node) {
			return node[i]
		}
	}
	return nil
}

func writeNode(w http.ResponseWriter, node any, format string) error {
	switch strings.ToLower(format) {
	case "text":
		text, leaf := node.(string)
		if !leaf {
			text = strings.Join(directoryOf(node), "\n")
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

// directoryOf lists the members of an object or a list, those that lead on with a slash.
func directoryOf(node any) []string {
	var names []string
	add := func(name string, v any) {
		if _, leaf := v.(string); !leaf {
			name += "/"
		}
		names = append(names, name)
	}
	switch node := node.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(node)) {
			add(name, node[name])
		}
	case []any:
		for i, v := range node {
			add(strconv.Itoa(i), v)
		}
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
	object := func(pairs ...string) map[string]any {
		o := map[string]any{}
		for i := 0; i < len(pairs); i += 2 {
			o[pairs[i]] = pairs[i+1]
		}
		return o
	}
	compute := object("azEnvironment", "AzurePublicCloud", "customData", "", "evictionPolicy", "", "isHostCompatibilityLayerVm", "false", "licenseType", "",
		"location", m.Location, "name", m.Name, "offer", "", "osType", "Linux", "placementGroupId", "", "platformFaultDomain", "0", "platformUpdateDomain", "0",
		"priority", "", "provider", "Microsoft.Compute", "publisher", "", "resourceGroupName", m.ID.ResourceGroup, "resourceId", m.ID.String(), "sku", "",
		"subscriptionId", m.ID.SubscriptionID, "tags", strings.Join(joined, ";"), "userData", "", "version", "", "vmId", m.VMID, "vmScaleSetName", m.ScaleSet,
		"vmSize", m.Size, "zone", m.Zone)
	compute["osProfile"] = object("adminUsername", "azureuser", "computerName", computerName(m), "disablePasswordAuthentication", "true")
	compute["plan"] = object("name", "", "product", "", "publisher", "")
	compute["publicKeys"] = []any{}
	compute["tagsList"] = tags
	if m.ScaleSet != "" {
		compute["virtualMachineScaleSet"] = object("id", m.ID.Parent().String())
	}
	// The network is made up, but the same for a machine as long as it lives, and another for each.
	h := sha256.Sum256([]byte(m.VMID))
	ip := netip.AddrFrom4([4]byte{10, 224, h[0], h[1]}).String()
	card := map[string]any{
		"ipv4":       map[string]any{"ipAddress": []any{object("privateIpAddress", ip, "publicIpAddress", "")}, "subnet": []any{object("address", "10.224.0.0", "prefix", "16")}},
		"ipv6":       map[string]any{"ipAddress": []any{}},
		"macAddress": fmt.Sprintf("000D3A%X", h[2:5]),
	}
	return map[string]any{"compute": compute, "network": map[string]any{"interface": []any{card}}}
}

// computerName is the host name that Azure gives an instance: the scale set's name and the number in base 36.
func computerName(m compute.Machine) string {
	i, err := strconv.Atoi(m.ID.Name())
	if m.ScaleSet == "" || err != nil {
		return m.Name
	}
	return fmt.Sprintf("%s%06s", m.ScaleSet, strings.ToUpper(strconv.FormatInt(int64(i), 36)))
}
