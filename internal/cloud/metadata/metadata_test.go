package metadata

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/cloudtest"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	rg         = "/subscriptions/" + cloudtest.SubscriptionID + "/resourceGroups/rg"
	identities = rg + "/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
	scaleSet   = rg + "/providers/Microsoft.Compute/virtualMachineScaleSets/aks-nodepool1"
	instance   = scaleSet + "/virtualMachines/0"
)

// A machine is a scale set with a metadata service for its instance 0.
type machine struct {
	*cloudtest.Cloud
	server *httptest.Server
	names  map[string]string // what ${…} stands for
}

func newMachine(t *testing.T, on ...string) *machine {
	t.Helper()
	m := &machine{Cloud: cloudtest.New(t), names: map[string]string{}}
	m.Do("PUT", rg, map[string]any{"location": "eastus"}, nil)
	assigned := map[string]any{}
	kinds := []string{}
	for _, name := range []string{"one", "two", "gone"} {
		var i struct {
			ID         string
			Properties struct{ PrincipalID, ClientID string }
		}
		m.Do("PUT", identities+name, map[string]any{"location": "eastus"}, &i)
		m.names["${"+name+".id}"], m.names["${"+strings.ToUpper(name)+".ID}"] = i.ID, strings.ToUpper(i.ID)
		m.names["${"+strings.ToUpper(name)+".CLIENTID}"] = strings.ToUpper(i.Properties.ClientID)
		m.names["${"+name+".clientId}"], m.names["${"+name+".principalId}"] = i.Properties.ClientID, i.Properties.PrincipalID
	}
	for _, name := range on {
		if name == "system" {
			kinds = append(kinds, "SystemAssigned")
			continue
		}
		assigned[identities+name] = map[string]any{}
	}
	identity := map[string]any{"type": "None"}
	if len(assigned) > 0 {
		kinds = append(kinds, "UserAssigned")
		identity["userAssignedIdentities"] = assigned
	}
	if len(kinds) > 0 {
		identity["type"] = strings.Join(kinds, ", ")
	}
	m.Do("PUT", scaleSet, map[string]any{"location": "eastus", "sku": map[string]any{"name": "Standard_D2s_v5", "capacity": 2}, "zones": []string{"1"},
		"tags": map[string]string{"b": "2", "a": "1"}, "identity": identity}, nil)
	var system struct{ Properties struct{ ClientID string } }
	if len(kinds) > 0 && kinds[0] == "SystemAssigned" {
		m.Do("GET", scaleSet+"/providers/Microsoft.ManagedIdentity/identities/default", nil, &system)
		m.names["${system.clientId}"] = system.Properties.ClientID
	}
	m.Do("DELETE", identities+"gone", nil, nil)
	s := &Server{DB: m.DB, Tokens: m.Login.ManagedIdentityToken, Now: m.Now, Logger: m.Logger()}
	m.server = httptest.NewServer(s.Handler(instance))
	t.Cleanup(m.server.Close)
	return m
}

func (m *machine) expand(s string) string {
	for k, v := range m.names {
		s = strings.ReplaceAll(s, k, v)
	}
	return s
}

// contract is one line of testdata/contract.json, which every server of the token endpoint must keep.
type contract struct {
	Name       string
	Identities []string // on the machine: one, two, system, gone (deleted since)
	Method     string   // "" is GET
	Path       string   // "" is the token path
	Query      string
	Headers    map[string]string // absent means Metadata: true
	Status     int
	Body       map[string]string // members that must be there, as strings
}

func TestTokenContract(t *testing.T) {
	raw, err := os.ReadFile("testdata/contract.json")
	if err != nil {
		t.Fatal(err)
	}
	var contracts []contract
	if err := json.Unmarshal(raw, &contracts); err != nil {
		t.Fatal(err)
	}
	machines := map[string]*machine{}
	for _, ct := range contracts {
		key := strings.Join(ct.Identities, "+")
		if machines[key] == nil {
			machines[key] = newMachine(t, ct.Identities...)
		}
		m := machines[key]
		t.Run(ct.Name, func(t *testing.T) {
			if ct.Path == "" {
				ct.Path = imds.TokenPath
			}
			if ct.Headers == nil {
				ct.Headers = map[string]string{"Metadata": "true"}
			}
			status, header, body := m.send(t, ct.Method, ct.Path+"?"+m.expand(ct.Query), ct.Headers)
			if status != ct.Status {
				t.Fatalf("status %d, want %d: %v", status, ct.Status, body)
			}
			for k, v := range ct.Body {
				if got, _ := body[k].(string); got != m.expand(v) {
					t.Errorf("%s is %q, want %q", k, got, m.expand(v))
				}
			}
			if header.Get("Server") == "" || ct.Method != http.MethodHead && header.Get("Content-Type") != "application/json; charset=utf-8" {
				t.Errorf("headers %v", header)
			}
			if status == http.StatusOK {
				m.checkToken(t, body)
			} else if body["access_token"] != nil {
				t.Error("a refusal carries a token")
			}
		})
	}
}

// checkToken verifies a success: all values are strings, the lifetime is a day, and the token itself is for the
// resource and speaks for the client that the body names.
func (m *machine) checkToken(t *testing.T, body map[string]any) {
	t.Helper()
	for k, v := range body {
		if _, ok := v.(string); !ok {
			t.Errorf("%s is not a string: %v", k, v)
		}
	}
	secret, _ := body["access_token"].(string)
	claims, err := m.Login.Verify(t.Context(), secret, body["resource"].(string))
	if err != nil {
		t.Fatal(err)
	}
	if claims.AppID != body["client_id"] {
		t.Errorf("the token speaks for %s, the body says %s", claims.AppID, body["client_id"])
	}
	if left := claims.Expiry.Sub(m.Now()); left < 23*time.Hour || left > 25*time.Hour {
		t.Errorf("the token lives for %v", left)
	}
	if strings.Contains(m.Log.String(), secret) {
		t.Error("the log has the token")
	}
}

func (m *machine) send(t *testing.T, method, target string, headers map[string]string) (int, http.Header, map[string]any) {
	t.Helper()
	if method == "" {
		method = http.MethodGet
	}
	r, err := http.NewRequestWithContext(t.Context(), method, m.server.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range headers {
		r.Header.Set(k, v)
	}
	resp, err := m.server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	body := map[string]any{}
	if err := json.Unmarshal(raw, &body); err != nil {
		body["raw"] = string(raw)
	}
	return resp.StatusCode, resp.Header, body
}

func TestInstanceDocument(t *testing.T) {
	m := newMachine(t)
	header := map[string]string{"Metadata": "true"}
	_, _, body := m.send(t, "", "/metadata/instance?api-version=2021-02-01", header)
	compute, _ := body["compute"].(map[string]any)
	want := map[string]any{
		"azEnvironment": "AzurePublicCloud", "location": "eastus", "name": "aks-nodepool1_0", "osType": "Linux", "provider": "Microsoft.Compute",
		"resourceGroupName": "rg", "resourceId": instance, "subscriptionId": m.Subscription, "tags": "a:1;b:2",
		"tagsList": []any{map[string]any{"name": "a", "value": "1"}, map[string]any{"name": "b", "value": "2"}},
		"vmId":     compute["vmId"], "vmScaleSetName": "aks-nodepool1", "vmSize": "Standard_D2s_v5", "zone": "1",
		"virtualMachineScaleSet": map[string]any{"id": scaleSet},
		"osProfile":              map[string]any{"adminUsername": "azureuser", "computerName": "aks-nodepool1000000", "disablePasswordAuthentication": "true"},
	}
	for k, v := range want {
		if diff := cmp.Diff(v, compute[k]); diff != "" {
			t.Errorf("%s: -want +got:\n%s", k, diff)
		}
	}
	if len(compute["vmId"].(string)) != 36 {
		t.Errorf("vmId is %v", compute["vmId"])
	}
	tests := map[string]struct {
		target string
		header map[string]string
		status int
		body   string
	}{
		"a leaf as text":          {"/metadata/instance/compute/location?api-version=2021-02-01&format=text", header, 200, "eastus"},
		"a leaf in another case":  {"/metadata/instance/Compute/Location?api-version=2021-02-01&format=text", header, 200, "eastus"},
		"the root as text":        {"/metadata/instance?api-version=2021-02-01&format=text", header, 200, "compute/\nnetwork/"},
		"an element of a list":    {"/metadata/instance/compute/tagsList/1/name?api-version=2021-02-01&format=text", header, 200, "b"},
		"a list as text":          {"/metadata/instance/compute/tagsList?api-version=2021-02-01&format=text", header, 200, "0/\n1/"},
		"beyond a list":           {"/metadata/instance/compute/tagsList/2?api-version=2021-02-01", header, 404, "Not found"},
		"the card's address":      {"/metadata/instance/network/interface/0/ipv4/ipAddress/0/privateIpAddress?api-version=2021-02-01&format=text", header, 200, "10.224."},
		"a part as JSON":          {"/metadata/instance/compute/osProfile?api-version=2021-02-01&format=json", header, 200, "computerName"},
		"a trailing slash":        {"/metadata/instance/?api-version=2021-02-01&format=text", header, 200, "compute/"},
		"forwarded":               {"/metadata/instance?api-version=2021-02-01", map[string]string{"Metadata": "true", "X-Forwarded-For": "1.2.3.4"}, 400, "error"},
		"no header":               {"/metadata/instance?api-version=2021-02-01", nil, 400, "Required metadata header"},
		"no version":              {"/metadata/instance", header, 400, "api-version was not specified"},
		"an unknown version":      {"/metadata/instance?api-version=1999-01-01", header, 400, "api-version is invalid"},
		"an unknown member":       {"/metadata/instance/compute/none?api-version=2021-02-01", header, 404, "Not found"},
		"below a leaf":            {"/metadata/instance/compute/location/x?api-version=2021-02-01", header, 404, "Not found"},
		"an unknown format":       {"/metadata/instance?api-version=2021-02-01&format=xml", header, 400, "json or text"},
		"versions":                {"/metadata/versions", header, 200, "2021-12-13"},
		"versions without header": {"/metadata/versions", nil, 400, "Required metadata header"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, _, body := m.send(t, "", tt.target, tt.header)
			raw, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			text := string(raw)
			if s, ok := body["raw"].(string); ok {
				text = s
			}
			if status != tt.status || !strings.Contains(text, tt.body) {
				t.Errorf("%d %s, want %d with %q", status, text, tt.status, tt.body)
			}
		})
	}
}

func TestHandlerOfAMachineThatDoesNotExist(t *testing.T) {
	c := cloudtest.New(t)
	s := &Server{DB: c.DB, Tokens: c.Login.ManagedIdentityToken, Logger: c.Logger()}
	for name, tt := range map[string]struct {
		id   string
		want int
	}{
		"a machine that is not there yet": {instance, 404},
		"an instance beyond the capacity": {scaleSet + "/virtualMachines/7", 404},
		"not a machine":                   {identities + "one", 500},
		"not an id":                       {"node-0", 500},
	} {
		t.Run(name, func(t *testing.T) {
			m := &machine{Cloud: c, server: httptest.NewServer(s.Handler(tt.id))}
			defer m.server.Close()
			status, _, body := m.send(t, "", imds.TokenPath+"?api-version=2018-02-01&resource=x", map[string]string{"Metadata": "true"})
			if status != tt.want || body["access_token"] != nil {
				t.Errorf("%d %v, want %d", status, body, tt.want)
			}
		})
	}
}

// What Resource Manager changes, the next request sees.
func TestIdentitiesFollowResourceManager(t *testing.T) {
	m := newMachine(t, "one")
	ask := func() (int, string) {
		status, _, body := m.send(t, "", imds.TokenPath+"?api-version=2018-02-01&resource=https://vault.azure.net&client_id="+m.names["${two.clientId}"], map[string]string{"Metadata": "true"})
		client, _ := body["client_id"].(string)
		return status, client
	}
	if status, _ := ask(); status != 400 {
		t.Fatalf("before it is assigned: %d", status)
	}
	m.Do("PATCH", scaleSet, map[string]any{"identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{identities + "two": map[string]any{}}}}, nil)
	if status, client := ask(); status != 200 || client != m.names["${two.clientId}"] {
		t.Fatalf("after it is assigned: %d %s", status, client)
	}
	m.Do("PATCH", scaleSet, map[string]any{"identity": map[string]any{"type": "UserAssigned", "userAssignedIdentities": map[string]any{identities + "two": nil}}}, nil)
	if status, _ := ask(); status != 400 {
		t.Fatalf("after it is taken away: %d", status)
	}
}

// The real SDK asks at the real address; only its transport is ours.
func TestManagedIdentityCredentialOfTheSDK(t *testing.T) {
	m := newMachine(t, "one", "two")
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != azure.AddressMetadata+":80" {
			t.Errorf("dialled %s", address)
		}
		return new(net.Dialer).DialContext(ctx, network, m.server.Listener.Addr().String())
	}}
	defer transport.CloseIdleConnections()
	options := m.Options()
	options.Transport = &http.Client{Transport: transport}
	for name, id := range map[string]azidentity.ManagedIDKind{
		"by client id":   azidentity.ClientID(m.names["${two.clientId}"]),
		"by object id":   azidentity.ObjectID(m.names["${two.principalId}"]),
		"by resource id": azidentity.ResourceID(m.names["${two.id}"]),
	} {
		t.Run(name, func(t *testing.T) {
			cred, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: options, ID: id})
			if err != nil {
				t.Fatal(err)
			}
			got, err := cred.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azure.ResourceVault + "/.default"}})
			if err != nil {
				t.Fatal(err)
			}
			claims, err := m.Login.Verify(t.Context(), got.Token, azure.VaultAudiences()...)
			if err != nil || claims.AppID != m.names["${two.clientId}"] {
				t.Errorf("%+v, %v", claims, err)
			}
		})
	}
}

func TestClientOfImdsGetsATokenFromIt(t *testing.T) {
	m := newMachine(t, "one")
	client := &imds.Client{BaseURL: m.server.URL, HTTP: m.server.Client()}
	got, err := client.Token(t.Context(), token.Request{Resource: azure.ResourceVault, ResourceID: m.names["${one.id}"]})
	if err != nil || got.ClientID != m.names["${one.clientId}"] || !got.Valid(time.Now()) {
		t.Errorf("%v, %v", got, err)
	}
}
