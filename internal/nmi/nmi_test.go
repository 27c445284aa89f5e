package nmi

import (
	"bufio"
	"bytes"
	"context"
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

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/binding"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

const resourceID = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/vpl-id"

// A fakeNode knows one pod, which has the loopback address.
type fakeNode struct {
	mu         sync.Mutex
	pod        *binding.Pod
	world      binding.World
	exceptions []*v1.AzurePodIdentityException
	changed    chan struct{}
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
		changed: make(chan struct{}),
	}
}

func (n *fakeNode) PodByIP(_ context.Context, ip netip.Addr) (binding.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pod == nil {
		return binding.Pod{}, &UnknownPodError{IP: ip, Why: "nobody has it", Wait: true}
	}
	return *n.pod, nil
}

func (n *fakeNode) World(context.Context, binding.Pod) (binding.World, []*v1.AzurePodIdentityException, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.world, n.exceptions, nil
}

func (n *fakeNode) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *fakeNode) change(edit func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	edit()
	close(n.changed)
	n.changed = make(chan struct{})
}

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

// A fixture is a served Server with fakes around it.
type fixture struct {
	*Server
	node     *fakeNode
	recorded *memory
	log      *bytes.Buffer
	asked    []token.Request
	tokenErr error
	url      string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "metadata service: %s %s host=%s", r.Method, r.URL, r.Host)
	}))
	t.Cleanup(upstream.Close)
	u, err := url.Parse(upstream.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{node: newFakeNode(), recorded: &memory{}, log: &bytes.Buffer{}}
	now := time.Unix(1700000000, 0)
	f.Server = &Server{
		Node: f.node, Recorder: f.recorded, Upstream: u, Logger: slog.New(slog.NewJSONHandler(f.log, nil)),
		Tokens: token.Func(func(_ context.Context, r token.Request) (token.Token, error) {
			f.asked = append(f.asked, r)
			return token.Token{AccessToken: "the-secret-token", ExpiresOn: now.Add(time.Hour), NotBefore: now, Resource: r.Resource, ClientID: "client"}, f.tokenErr
		}),
	}
	s := httptest.NewServer(f.Server)
	t.Cleanup(func() {
		s.Close()
		f.upstream() // made before it is closed
		f.proxy.Transport.(*http.Transport).CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
	})
	f.url = s.URL
	return f
}

// get asks with the header of the contract unless headers say otherwise.
func (f *fixture) get(t *testing.T, path string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Metadata", "true")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
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

const tokenQuery = imds.TokenPath + "?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net"

func TestABoundPodGetsATokenAndItIsRecorded(t *testing.T) {
	f := newFixture(t)
	res, body := f.get(t, tokenQuery)
	var got map[string]string
	if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s (%v)", res.StatusCode, body, err)
	}
	if got["access_token"] != "the-secret-token" || got["client_id"] != "client" || got["expires_on"] != "1700003600" || got["resource"] != "https://vault.azure.net" {
		t.Errorf("got %v", got)
	}
	// By resource id: what mic assigned, whatever client id the AzureIdentity claims.
	if diff := cmp.Diff([]token.Request{{ResourceID: resourceID, Resource: "https://vault.azure.net"}}, f.asked); diff != "" {
		t.Errorf("asked the metadata service (-want +got)\n%s", diff)
	}
	d := f.recorded.all()
	if len(d) != 1 || !d[0].Issued || d[0].Pod.UID != "u" || d[0].Binding.Name != "vpl-id-to-little-pod" || d[0].Identity.Name != "vpl-id" || !d[0].Expires.Equal(time.Unix(1700003600, 0)) {
		t.Errorf("recorded %+v", d)
	}
	if strings.Contains(f.log.String(), "the-secret-token") {
		t.Error("the token is in the log")
	}
}

func TestRefusalsSayWhyAndAreRecorded(t *testing.T) {
	for _, c := range []struct {
		name   string
		edit   func(*fixture)
		query  string
		status int
		code   string
		text   string
		reason string
	}{
		{"a pod without the label", func(f *fixture) { f.node.pod.Labels = nil }, "", 404, "not_found", "does not have the label aadpodidbinding", "NoLabel"},
		{"a pod without a binding", func(f *fixture) { f.node.world.Bindings = nil }, "", 404, "not_found", `no AzureIdentityBinding has the selector`, "NoBinding"},
		{"another client id", func(*fixture) {}, "&client_id=other", 404, "not_found", "no binding of pod default/test-id-pod leads to", "NotAllowed"},
		{"an object id", func(*fixture) {}, "&object_id=o", 400, "invalid_request", "client_id or msi_res_id", "UnsupportedSelector"},
		{"a service principal", func(f *fixture) { f.node.world.Identity("default", "vpl-id").Spec.Type = v1.ServicePrincipal }, "", 403, "invalid_request", "not supported", "UnsupportedType"},
		{"an address that no pod has", func(f *fixture) { f.node.pod = nil }, "", 404, "not_found", "nobody has it", "UnknownPod"},
		{"an assignment that does not come", func(f *fixture) { f.node.world.Assigned = nil }, "", 404, "not_found", "is not assigned to the machine", "NotAssigned"},
		{"the same when asked to say when to retry", func(f *fixture) { f.node.world.Assigned, f.RetryAfter = nil, 20*time.Second }, "", 503, "not_found", "is not assigned to the machine", "NotAssigned"},
		{"an identity that the machine has lost", func(f *fixture) {
			f.tokenErr = &imds.Error{Status: 400, Code: imds.CodeInvalidRequest, Description: imds.DescriptionIdentityNotFound}
		}, "", 403, "invalid_request", "no token for this identity: Identity not found", "invalid_request"},
		{"a metadata service that throttles", func(f *fixture) {
			f.tokenErr = &imds.Error{Status: 429, Code: "too_many", Description: "slow down", RetryAfter: 3 * time.Second}
		}, "", 429, "too_many", "slow down", "too_many"},
		{"a metadata service that is away", func(f *fixture) { f.tokenErr = errors.New("dial tcp: secret detail") }, "", 503, "unknown", "did not answer", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			c.edit(f)
			res, body := f.get(t, tokenQuery+c.query)
			var got struct {
				Error       string `json:"error"`
				Description string `json:"error_description"`
			}
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if res.StatusCode != c.status || got.Error != c.code || !strings.Contains(got.Description, c.text) {
				t.Errorf("got %d %s", res.StatusCode, body)
			}
			if strings.Contains(body, "secret detail") {
				t.Error("the caller is told what is for the log")
			}
			if (c.status == 503 && f.RetryAfter > 0) != (res.Header.Get("Retry-After") == "20") {
				t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
			}
			if d := f.recorded.all(); len(d) != 1 || d[0].Issued || d[0].Reason != c.reason {
				t.Errorf("recorded %+v", d)
			}
			if !strings.Contains(f.log.String(), "request refused") {
				t.Errorf("logged %s", f.log)
			}
		})
	}
}

func TestARequestWaitsForTheAssignmentThatIsUnderWay(t *testing.T) {
	f := newFixture(t)
	f.Wait = time.Minute
	assigned := f.node.world.Assigned
	f.node.world.Assigned = nil
	answered := make(chan string)
	go func() {
		_, body := f.get(t, tokenQuery)
		answered <- body
	}()
	// A change that does not help must not end the wait.
	f.node.change(func() {})
	select {
	case body := <-answered:
		t.Fatalf("answered before the assignment: %s", body)
	case <-time.After(50 * time.Millisecond):
	}
	f.node.change(func() { f.node.world.Assigned = assigned })
	if body := <-answered; !strings.Contains(body, "the-secret-token") {
		t.Errorf("got %s", body)
	}
}

func TestARefusalThatNoChangeHelpsComesAtOnce(t *testing.T) {
	f := newFixture(t)
	f.Wait = time.Hour
	f.node.pod.Labels = nil
	if res, body := f.get(t, tokenQuery); res.StatusCode != http.StatusNotFound {
		t.Errorf("got %d %s", res.StatusCode, body)
	}
}

func TestAClientThatGoesAwayIsNotRecorded(t *testing.T) {
	f := newFixture(t)
	f.Wait = time.Hour
	f.node.world.Assigned = nil
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+tokenQuery, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Metadata", "true")
	if res, err := http.DefaultClient.Do(r); err == nil {
		res.Body.Close()
		t.Fatalf("answered %d", res.StatusCode)
	}
	if d := f.recorded.all(); len(d) != 0 {
		t.Errorf("recorded %+v", d)
	}
}

func TestAnExceptedPodIsPassedThrough(t *testing.T) {
	f := newFixture(t)
	e := &v1.AzurePodIdentityException{}
	e.Namespace, e.Spec.PodLabels = "default", map[string]string{"app": "x"}
	f.node.exceptions = []*v1.AzurePodIdentityException{e}
	f.node.pod.Labels = map[string]string{"app": "X"}
	if res, body := f.get(t, tokenQuery+"&object_id=o"); res.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if diff := cmp.Diff([]token.Request{{ObjectID: "o", Resource: "https://vault.azure.net"}}, f.asked); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if d := f.recorded.all(); len(d) != 1 || !d[0].Issued || !d[0].Excepted {
		t.Errorf("recorded %+v", d)
	}
}

func TestTheContractComesBeforeTheRules(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		path    string
		headers []string
		text    string
	}{
		"no Metadata header":  {tokenQuery, []string{"Metadata: "}, imds.DescriptionNoHeader},
		"forwarded":           {tokenQuery, []string{"X-Forwarded-For: 10.0.0.1"}, ""},
		"no resource":         {imds.TokenPath, nil, "resource"},
		"a selector twice":    {tokenQuery + "&client_id=a&client_id=b", nil, "client_id"},
		"instance, no header": {"/metadata/instance", []string{"Metadata: "}, imds.DescriptionNoHeader},
		"instance, forwarded": {"/metadata/instance", []string{"X-Forwarded-For: 10.0.0.1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, body := f.get(t, c.path, c.headers...)
			if res.StatusCode != http.StatusBadRequest || !strings.Contains(body, c.text) {
				t.Errorf("got %d %s", res.StatusCode, body)
			}
		})
	}
	if len(f.asked) != 0 {
		t.Errorf("asked for tokens: %+v", f.asked)
	}
}

func TestOtherMetadataPathsReachTheMetadataService(t *testing.T) {
	f := newFixture(t)
	_, body := f.get(t, "/metadata/instance?api-version=2021-02-01")
	if want := "metadata service: GET /metadata/instance?api-version=2021-02-01 host=" + f.Upstream.Host; body != want {
		t.Errorf("got %q, want %q", body, want)
	}
	f.BlockInstance = true
	if res, body := f.get(t, "/metadata/instance?api-version=2021-02-01"); res.StatusCode != http.StatusForbidden {
		t.Errorf("blocked: %d %s", res.StatusCode, body)
	}
	if _, body := f.get(t, "/metadata/versions"); !strings.HasPrefix(body, "metadata service:") {
		t.Errorf("versions: %s", body)
	}
}

// A path that another parser might take for the token endpoint must never be
// passed on (CVE-2022-23551), so these go over a bare connection as they are.
func TestNoSpellingOfTheTokenPathReachesTheMetadataService(t *testing.T) {
	f := newFixture(t)
	f.node.pod.Labels = nil // a pod that has nothing
	for _, path := range []string{
		"/metadata/identity/oauth2/token", "/metadata/identity/oauth2/token/", "/Metadata/Identity/OAuth2/Token",
		"/metadata/identity/oauth2/token/x", "/metadata/identity/oauth2//token", "//metadata/identity/oauth2/token",
		"/metadata/./identity/oauth2/token", "/metadata/x/../identity/oauth2/token", "/metadata/instance/../identity/oauth2/token",
		"/metadata/identity%2foauth2%2ftoken", "/metadata/%69dentity/oauth2/token", "/metadata%5cidentity%5coauth2%5ctoken",
		`/metadata\identity\oauth2\token`, `/metadata/identity\oauth2/token`, "/metadata/identity/oauth2/token;x", "/metadata/identity/oauth2/token%00",
		"/metadata/identity/info", "/metadata/instance/%2e%2e/identity/oauth2/token", "/metadata/instance//../identity/oauth2/token",
	} {
		t.Run(path, func(t *testing.T) {
			status, body := f.raw(t, path+"?resource=https://vault.azure.net")
			if strings.Contains(body, "metadata service:") || status == http.StatusOK {
				t.Errorf("passed on: %d %s", status, body)
			}
			if status != http.StatusBadRequest && status != http.StatusNotFound {
				t.Errorf("got %d %s", status, body)
			}
		})
	}
	if len(f.asked) != 0 {
		t.Errorf("asked for tokens: %+v", f.asked)
	}
}

func (f *fixture) raw(t *testing.T, target string) (int, string) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nConnection: close\r\n\r\n", target)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}
