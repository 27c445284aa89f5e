package webhook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/lanyard-id/lanyard/internal/lab/labtest"
	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

func TestPackedAccountsKeepWhatIsOfTheContract(t *testing.T) {
	type maps = map[string]string
	for name, tc := range map[string]struct {
		labels, annotations maps
		want                mutation.ServiceAccount
	}{
		"nothing":       {},
		"others' only":  {maps{"app": "x"}, maps{"example.com/client-id": "y"}, mutation.ServiceAccount{}},
		"an annotation": {nil, maps{"azure.workload.identity/client-id": "a", "x": "y"}, mutation.ServiceAccount{Annotations: maps{"azure.workload.identity/client-id": "a"}}},
		"an empty one":  {nil, maps{"azure.workload.identity/tenant-id": ""}, mutation.ServiceAccount{Annotations: maps{"azure.workload.identity/tenant-id": ""}}},
		"a label":       {maps{"azure.workload.identity/use": "true"}, nil, mutation.ServiceAccount{Labels: maps{"azure.workload.identity/use": "true"}}},
		"all of it": {maps{"azure.workload.identity/use": ""}, maps{"azure.workload.identity/client-id": "=", "azure.workload.identity/tenant-id": "", "azure.workload.identity/use": "z"},
			mutation.ServiceAccount{
				Labels:      maps{"azure.workload.identity/use": ""},
				Annotations: maps{"azure.workload.identity/client-id": "=", "azure.workload.identity/tenant-id": "", "azure.workload.identity/use": "z"},
			}},
		"a value that separates": {nil, maps{"azure.workload.identity/client-id": "a\x00tenant-id\x00b"}, mutation.ServiceAccount{}},
	} {
		t.Run(name, func(t *testing.T) {
			got := pack(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Labels: tc.labels, Annotations: tc.annotations}}).unpack()
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// An API server that answers in pages, ends watches, and forgets versions.
func TestAccountsAreReadInPagesAndFollowed(t *testing.T) {
	object := func(namespace, name, client, version string) string {
		return fmt.Sprintf(`{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"namespace":"%s","name":"%s","resourceVersion":"%s","annotations":{"azure.workload.identity/client-id":"%s"}}}`, namespace, name, version, client)
	}
	page := func(version, next string, items ...string) string {
		return fmt.Sprintf(`{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadataList","metadata":{"resourceVersion":"%s","continue":"%s"},"items":[%s]}`, version, next, strings.Join(items, ","))
	}
	var mu sync.Mutex
	var asked []string
	lists := 0
	hold := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		mu.Lock()
		asked = append(asked, fmt.Sprintf("watch=%s continue=%s version=%s", q.Get("watch"), q.Get("continue"), q.Get("resourceVersion")))
		if q.Get("watch") == "" && q.Get("continue") == "" {
			lists++
		}
		list := lists
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case q.Get("watch") == "" && list == 1:
			http.Error(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"starting","reason":"ServiceUnavailable","code":503}`, http.StatusServiceUnavailable)
		case q.Get("watch") == "" && list == 2 && q.Get("continue") == "":
			fmt.Fprint(w, page("", "more", object("n", "a", "1", "1"), object("n", "gone", "1", "1")))
		case q.Get("watch") == "" && list == 2:
			fmt.Fprint(w, page("7", "", object("n", "b", "2", "2")))
		case q.Get("resourceVersion") == "7":
			fmt.Fprintf(w, `{"type":"ADDED","object":%s}{"type":"BOOKMARK","object":%s}{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410}}`,
				object("n", "c", "3", "8"), object("", "", "", "9"))
		case q.Get("watch") == "":
			fmt.Fprint(w, page("20", "", object("n", "a", "one", "15"), object("n", "d", "4", "16")))
		default:
			fmt.Fprintf(w, `{"type":"MODIFIED","object":%s}{"type":"DELETED","object":%s}`, object("n", "a", "1st", "21"), object("n", "d", "4", "22"))
			w.(http.Flusher).Flush()
			<-hold
		}
	}))
	defer server.Close()
	defer close(hold)
	meta, err := metadata.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	listed := 0
	var log safeBuffer
	c := &AccountCache{Client: meta, Listed: func() { listed++ }, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	if c.Ready() == nil {
		t.Error("ready before the first list")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	labtest.Eventually(t, t.Context(), func() error {
		if err := c.Ready(); err != nil {
			return err
		}
		c.mu.RLock()
		defer c.mu.RUnlock()
		if diff := cmp.Diff(map[string]packed{"n/a": "client-id\x001st"}, c.annotated); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	want := []string{
		"watch= continue= version=", "watch= continue= version=", "watch= continue=more version=",
		"watch=true continue= version=7", "watch= continue= version=", "watch=true continue= version=20",
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, asked); diff != "" || listed != 2 {
		t.Errorf("listed %d times\n%s", listed, diff)
	}
	for _, text := range []string{"unable to handle the request", "too old"} {
		if !strings.Contains(log.String(), text) {
			t.Errorf("the log lacks %q:\n%s", text, &log)
		}
	}
}

// 50,000 accounts, all annotated, are 15 MB at most.
func TestAnAccountTakesLittleMemory(t *testing.T) {
	const accounts = 50000
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	c := &AccountCache{annotated: map[string]packed{}}
	for i := range accounts {
		c.put(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("namespace-%d", i/50), Name: fmt.Sprintf("service-account-%d", i),
			Annotations: map[string]string{"azure.workload.identity/client-id": fmt.Sprintf("11111111-2222-3333-4444-%012d", i), "padding": strings.Repeat("x", 600)},
		}})
	}
	if each := (heap() - before) / accounts; each > 300 || c.Len() != accounts {
		t.Errorf("%d accounts, %d bytes each", c.Len(), each)
	} else {
		t.Logf("%d bytes each", each)
	}
}

// A review may come from anybody in the cluster: the API server has not looked
// at the names in it.
func TestNamesThatLeadElsewhereAreNotAskedFor(t *testing.T) {
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		http.NotFound(w, r)
	}))
	defer server.Close()
	client, err := metadata.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	cache := &AccountCache{Client: client}
	for _, at := range [][2]string{
		{"default", "../../../serviceaccounts"}, // all of them, in one answer
		{"default", "../secrets/azure-wi-webhook-server-cert"},
		{"..", "x"}, {"a/../b", "x"}, {"default", "a%2fb"}, {"default", "x?watch=true"}, {"", "x"}, {"default", ""},
	} {
		if _, err := cache.ServiceAccount(t.Context(), at[0], at[1]); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v, want not found", at, err)
		}
	}
	if len(asked) > 0 {
		t.Errorf("the API server was asked for %q", asked)
	}
}

// The API server that asks for a review is there, although the connection to it
// may be refused at that moment.
func TestAnAccountIsAskedForAgainWhileNobodyAnswers(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path]++
		n := asked[r.URL.Path]
		mu.Unlock()
		switch {
		case strings.HasSuffix(r.URL.Path, "/forbidden"):
			w.WriteHeader(http.StatusForbidden)
		case n < 3 || strings.HasSuffix(r.URL.Path, "/away"):
			panic(http.ErrAbortHandler) // the connection ends
		default:
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"namespace":"a","name":"late","annotations":{"azure.workload.identity/client-id":"x"}}}`)
		}
	}))
	defer server.Close()
	client, err := metadata.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	c := &AccountCache{Client: client}
	if sa, err := c.ServiceAccount(t.Context(), "a", "late"); err != nil || sa.Annotations["azure.workload.identity/client-id"] != "x" {
		t.Errorf("it answered in the end: %+v, %v", sa, err)
	}
	if _, err := c.ServiceAccount(t.Context(), "a", "forbidden"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a refusal: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := c.ServiceAccount(ctx, "a", "away"); err == nil || ctx.Err() == nil {
		t.Errorf("the review's own deadline counts: %v", err)
	}
	for name, most := range map[string]int{"late": 4, "forbidden": 1} {
		if n := asked["/api/v1/namespaces/a/serviceaccounts/"+name]; n == 0 || n > most {
			t.Errorf("%s was asked for %d times", name, n)
		}
	}
}
