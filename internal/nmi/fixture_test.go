package nmi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

const resourceID = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/vpl-id"

// The instant at which the fixture's tokens are asked for.
var now = time.Unix(1700000000, 0)

// A fakeNode knows one pod, which has the loopback address.
type fakeNode struct {
	mu         sync.Mutex
	pod        *binding.Pod
	driver     *binding.Pod // by its UID only
	world      binding.World
	exceptions []*v1.AzurePodIdentityException
	changes    map[chan struct{}]bool
}

func newFakeNode() *fakeNode {
	id := &v1.AzureIdentity{}
	id.Namespace, id.Name = "default", "vpl-id"
	id.Spec.ResourceID, id.Spec.ClientID = resourceID, "client"
	b := &v1.AzureIdentityBinding{}
	b.Namespace, b.Name = "default", "vpl-id-to-little-pod"
	b.Spec.AzureIdentity, b.Spec.Selector = "vpl-id", "little-pod-binding"
	a := &v1.AzureAssignedIdentity{}
	a.Spec.Pod, a.Spec.PodNamespace, a.Spec.NodeName, a.Spec.AzureIdentityRef = "test-id-pod", "default", "n1", id
	a.Status.Status = v1.AssignedIDAssigned
	return &fakeNode{
		pod: &binding.Pod{Namespace: "default", Name: "test-id-pod", UID: "u", Node: "n1", ServiceAccount: "sa", Labels: map[string]string{v1.BindingLabel: "little-pod-binding"}},
		world: binding.World{
			Bindings: []*v1.AzureIdentityBinding{b}, Assigned: []*v1.AzureAssignedIdentity{a},
			Identity: func(namespace, name string) *v1.AzureIdentity {
				if namespace == id.Namespace && name == id.Name {
					return id
				}
				return nil
			},
		},
		changes: map[chan struct{}]bool{},
	}
}

func (n *fakeNode) Pod(who Who) (binding.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.driver != nil && who.UID == n.driver.UID {
		return *n.driver, nil
	}
	if n.pod == nil || who.UID != "" || who.Name != "" && (who.Name != n.pod.Name || who.Namespace != n.pod.Namespace) {
		return binding.Pod{}, &UnknownPodError{Who: who, Why: "nobody has it", Wait: true}
	}
	return *n.pod, nil
}

func (n *fakeNode) View(p binding.Pod) *View {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &View{Pod: p, World: n.world, Exceptions: n.exceptions}
}

func (n *fakeNode) Changes(Who) (<-chan struct{}, func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(chan struct{}, 1)
	n.changes[c] = true
	return c, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.changes, c)
	}
}

func (n *fakeNode) change(edit func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	edit()
	for c := range n.changes {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (n *fakeNode) identity() *v1.AzureIdentity { return n.world.Identity("default", "vpl-id") }

type memory struct {
	mu        sync.Mutex
	decisions []Decision
}

func (m *memory) Record(_ context.Context, d Decision) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.decisions = append(m.decisions, d)
}

func (m *memory) all() []Decision {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.decisions)
}

// jwt is an access token that says which object it is of.
func jwt(oid string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"oid":"`+oid+`"}`)) + ".s"
}

// An azure gives tokens, whatever way they are asked for.
type azure struct {
	mu       sync.Mutex
	err      error
	lifetime time.Duration
	tenants  int             // more than one: auxiliary tenants
	asked    []string        // identities
	passed   []token.Request // for pods with an exception
}

func (a *azure) Tokens(_ context.Context, id *v1.AzureIdentity, resource string) ([]token.Token, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked = append(a.asked, id.Namespace+"/"+id.Name)
	if a.err != nil {
		return nil, a.err
	}
	all := make([]token.Token, max(1, a.tenants))
	for i := range all {
		all[i] = token.Token{AccessToken: jwt("oid-of-" + id.Name), ExpiresOn: now.Add(a.lifetime), NotBefore: now.Add(-time.Minute), Resource: resource, ClientID: id.Spec.ClientID}
	}
	return all, nil
}

func (a *azure) Token(_ context.Context, r token.Request) (token.Token, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.passed = append(a.passed, r)
	return token.Token{AccessToken: jwt("node"), ExpiresOn: now.Add(a.lifetime), Resource: r.Resource, ClientID: "node"}, a.err
}

// A fixture is a served Server and a served Host with fakes around them.
type fixture struct {
	*Server
	host     *Host
	node     *fakeNode
	azure    *azure
	recorded *memory
	log      *bytes.Buffer
	url      string
	hostURL  string
	mu       sync.Mutex
	passed   []string // to the metadata service: request targets
}

// A process is who calls the Host.
type process struct {
	uid string
	err error
}

func (p *process) PodUID(netip.AddrPort, netip.AddrPort) (string, error) { return p.uid, p.err }

// Review knows one token.
func (p *process) Review(_ context.Context, bearer string) (user, node string, err error) {
	switch bearer {
	case "of-the-driver":
		return "system:serviceaccount:kube-system:csi-secrets-store-provider-azure", "n1", nil
	case "of-another-node":
		return "system:serviceaccount:kube-system:csi-secrets-store-provider-azure", "n2", nil
	case "of-somebody":
		return "system:serviceaccount:default:somebody", "", nil
	case "of-a-user":
		return "kube-system:csi-secrets-store-provider-azure", "", nil
	}
	return "", "", errors.New("it is not valid")
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	f := &fixture{node: newFakeNode(), recorded: &memory{}, log: &bytes.Buffer{}, azure: &azure{lifetime: time.Hour}}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.passed = append(f.passed, r.RequestURI)
		f.mu.Unlock()
		fmt.Fprintf(w, "metadata service: %s %s host=%s", r.Method, r.URL, r.Host)
	}))
	t.Cleanup(upstream.Close)
	u, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	f.Server = &Server{
		Node: f.node, Recorder: f.recorded, Upstream: u, Tokens: f.azure, Metadata: f.azure, Transport: transport,
		Logger: slog.New(slog.NewJSONHandler(f.log, nil)), Now: func() time.Time { return now },
	}
	p := &process{uid: "driver"}
	f.node.driver = &binding.Pod{Namespace: "kube-system", Name: "provider-x", UID: "driver", ServiceAccount: "csi-secrets-store-provider-azure", Node: "n1"}
	f.host = &Host{Server: f.Server, Processes: p, Reviewer: p, Callers: strings.Split(DefaultHostCallers, ","), Node: "n1"}
	s, h := serving(f.Server), serving(f.host)
	t.Cleanup(func() {
		s.Close()
		h.Close()
		transport.CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
	})
	f.url, f.hostURL = s.URL, h.URL
	return f
}

func serving(h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config = NewHTTPServer(h, time.Minute)
	s.Start()
	return s
}

// get asks with the header of the contract unless headers say otherwise.
func (f *fixture) get(t *testing.T, path string, headers ...string) (*http.Response, string) {
	t.Helper()
	return f.ask(t, f.url, http.MethodGet, path, append([]string{"Metadata: true"}, headers...)...)
}

func (f *fixture) ask(t *testing.T, base, method, path string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		}
		if r.Header.Set(name, value); value == "" {
			r.Header.Del(name)
		}
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// raw sends a request line and headers as they are.
func (f *fixture) raw(t *testing.T, line string, headers ...string) (int, string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%s\r\nHost: 169.254.169.254\r\nMetadata: true\r\nConnection: close\r\n%s\r\n", line, strings.Join(append(headers, ""), "\r\n"))
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, "" // closed without an answer
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(body)
}

func (f *fixture) reached() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.passed)
}

// An answer is any JSON answer.
type answer struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`

	AccessToken string `json:"access_token"`
	ExpiresOn   string `json:"expires_on"`
	ExpiresIn   string `json:"expires_in"`
}

func decode(t *testing.T, body string) answer {
	t.Helper()
	var a answer
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return a
}

const tokenQuery = imds.TokenPath + "?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"
