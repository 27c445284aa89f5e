package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

// world is an API server of five resources on the bubble's clock, for what
// takes too long or is too wrong for a real one.
type world struct {
	mu       sync.Mutex
	version  int
	pods     map[string]string // JSON by namespace/name
	lease    []byte
	watchers map[chan string]bool
	asked    map[string]int // requests by method and the last part of the path
	lists    int
	watches  int

	selector  string                                             // namespaceSelector
	accounts  map[string]string                                  // client ids by namespace/name
	evict     func(w *world, key string) (*http.Response, error) // nil deletes the pod
	refuse    func(r *http.Request) int                          // a status; 0: no
	onWatch   func(out io.Writer)                                // instead of a watch that lasts
	known     string                                             // client id of every account, as the cache has it
	unlabeled bool                                               // nobody may read namespaces
}

func newWorld() *world {
	return &world{pods: map[string]string{}, watchers: map[chan string]bool{}, asked: map[string]int{}, accounts: map[string]string{}}
}

// pod writes a pod of a ReplicaSet of the given name.
func (w *world) pod(namespace, owner, name string, mutated bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	container, volumes := `{"name":"main"}`, ``
	if mutated {
		container = `{"name":"main","env":[{"name":"AZURE_FEDERATED_TOKEN_FILE","value":"/var/run/secrets/azure/tokens/azure-identity-token"},{"name":"AZURE_CLIENT_ID","value":"c1"}],"volumeMounts":[{"name":"azure-identity-token","mountPath":"/var/run/secrets/azure/tokens","readOnly":true}]}`
		volumes = `,"volumes":[{"name":"azure-identity-token","projected":{"sources":[{"serviceAccountToken":{"path":"azure-identity-token"}}]}}]`
	}
	w.version++
	text := fmt.Sprintf(`{"metadata":{"name":%q,"namespace":%q,"uid":"%s-%d","resourceVersion":"%d","creationTimestamp":%q,"labels":{"azure.workload.identity/use":"true"},
		"annotations":{"lanyard.id/injected-identity":"{\"serviceAccount\":\"app\",\"env\":{\"AZURE_CLIENT_ID\":{\"value\":\"c1\",\"containers\":[\"main\"]}}}"},
		"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":%q,"uid":%q,"controller":true}]},
		"spec":{"serviceAccountName":"app","containers":[%s]%s},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`,
		name, namespace, name, w.version, w.version, time.Now().UTC().Format(time.RFC3339), owner, owner, container, volumes)
	w.pods[namespace+"/"+name] = strings.NewReplacer("\n", "", "\t", "").Replace(text)
	w.tell("ADDED", w.pods[namespace+"/"+name])
}

func (w *world) gone(key string) {
	text := w.pods[key]
	delete(w.pods, key)
	w.version++
	w.tell("DELETED", text)
}

func (w *world) tell(kind, object string) {
	for out := range w.watchers {
		out <- fmt.Sprintf(`{"type":%q,"object":%s}`+"\n", kind, object)
	}
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	last := part[len(part)-1]
	w.asked[r.Method+" "+last]++
	if w.refuse != nil {
		if code := w.refuse(r); code != 0 {
			return status(code), nil
		}
	}
	switch {
	case strings.Contains(r.URL.Path, "/mutatingwebhookconfigurations/"):
		selector := ""
		if w.selector != "" {
			selector = `,"namespaceSelector":` + w.selector
		}
		return answer(200, `{"webhooks":[{"name":"hook","clientConfig":{"caBundle":"eA=="},"rules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE"],"resources":["pods"]}]`+selector+`}]}`), nil
	case strings.Contains(r.URL.Path, "/leases"):
		return w.leases(r)
	case last == "eviction":
		key := part[3] + "/" + part[5]
		if w.evict != nil {
			return w.evict(w, key)
		}
		w.gone(key)
		return answer(201, `{}`), nil
	case strings.Contains(r.URL.Path, "/events"):
		return answer(201, `{}`), nil
	case strings.Contains(r.URL.Path, "/serviceaccounts/"):
		return answer(200, fmt.Sprintf(`{"metadata":{"annotations":{"azure.workload.identity/client-id":%q}}}`, w.accounts[part[3]+"/"+last])), nil
	case r.URL.Path == "/api/v1/pods" && r.URL.Query().Get("watch") != "":
		return w.watch(r), nil
	case r.URL.Path == "/api/v1/pods":
		w.lists++
		items := slices.Sorted(maps.Values(w.pods))
		return answer(200, fmt.Sprintf(`{"metadata":{"resourceVersion":"%d"},"items":[%s]}`, w.version, strings.Join(items, ","))), nil
	case len(part) == 6 && part[4] == "pods" && w.pods[part[3]+"/"+last] != "":
		return answer(200, w.pods[part[3]+"/"+last]), nil
	case len(part) == 4 && part[2] == "namespaces" && !w.unlabeled:
		return answer(200, `{"metadata":{}}`), nil
	case len(part) == 4 && part[2] == "namespaces":
		return status(403), nil
	}
	return status(404), nil
}

// leases are optimistic, as the real ones.
func (w *world) leases(r *http.Request) (*http.Response, error) {
	var have, next struct{ Metadata metav1.ObjectMeta }
	if w.lease == nil && r.Method != http.MethodPost {
		return status(404), nil
	}
	if r.Method == http.MethodGet {
		return answer(200, string(w.lease)), nil
	}
	var whole map[string]any
	text, err := io.ReadAll(r.Body)
	if err := errors.Join(err, json.Unmarshal(text, &next), json.Unmarshal(text, &whole)); err != nil {
		return nil, err
	}
	if w.lease != nil {
		if err := json.Unmarshal(w.lease, &have); err != nil {
			return nil, err
		}
		if next.Metadata.ResourceVersion != have.Metadata.ResourceVersion {
			return status(409), nil
		}
	}
	w.version++
	whole["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(w.version)
	w.lease, err = json.Marshal(whole)
	return answer(200, string(w.lease)), err
}

func (w *world) watch(r *http.Request) *http.Response {
	w.watches++
	in, out := io.Pipe()
	seconds, _ := strconv.Atoi(r.URL.Query().Get("timeoutSeconds"))
	changes, onWatch, end := make(chan string, 1000), w.onWatch, time.After(time.Duration(seconds)*time.Second)
	w.watchers[changes] = true
	go func() { // the server's side; it ends with the request or by itself
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.watchers, changes)
			_ = out.Close()
		}()
		if onWatch != nil {
			onWatch(out)
			return
		}
		stop := context.AfterFunc(r.Context(), func() { _ = out.CloseWithError(r.Context().Err()) })
		defer stop()
		for {
			select {
			case <-r.Context().Done():
				return
			case <-end:
				return
			case change := <-changes:
				_, _ = io.WriteString(out, change)
			}
		}
	}()
	resp := answer(200, "")
	resp.Body = in
	return resp
}

func answer(code int, text string) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{"Date": {time.Now().UTC().Format(http.TimeFormat)}}, Body: io.NopCloser(strings.NewReader(text))}
}

func status(code int) *http.Response {
	return answer(code, fmt.Sprintf(`{"kind":"Status","status":"Failure","code":%d,"reason":%q,"message":"no"}`, code, map[int]metav1.StatusReason{404: "NotFound", 409: "Conflict", 429: "TooManyRequests", 403: "Forbidden", 500: "InternalError"}[code]))
}

// Known is a cache that says the same of all accounts.
func (w *world) Known(string, string) mutation.ServiceAccount {
	if w.known == "" {
		return mutation.ServiceAccount{}
	}
	return mutation.ServiceAccount{Annotations: map[string]string{workloadidentity.AnnotationClientID: w.known}}
}

// doctor runs a doctor at the pace of production until the end of the test.
func (w *world) doctor(t *testing.T, evict bool) *clinic {
	t.Helper()
	c := w.open()
	c.Evict = evict
	return (&town{t: t}).start(c)
}

func (w *world) open() *clinic {
	c := &clinic{log: &safeBuffer{}}
	c.Doctor = &Doctor{
		API:      &API{client: &http.Client{Transport: w}, base: &url.URL{Scheme: "http", Host: "world"}},
		Accounts: w, Config: testConfig, Configuration: "c", Webhook: "hook", Namespace: "system", Identity: fmt.Sprintf("%p", c),
		Metrics: NewMetrics(), Logger: slog.New(slog.NewTextHandler(c.log, nil)),
	}
	return c
}

// count is the number of requests of a kind.
func (w *world) count(kind string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[kind]
}

// do changes the world.
func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}
