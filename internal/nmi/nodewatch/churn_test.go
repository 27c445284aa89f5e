package nodewatch

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/internal/nmi"
	"github.com/lanyard-id/lanyard/internal/nmi/journal"
	"github.com/lanyard-id/lanyard/internal/nmi/source"
	"github.com/lanyard-id/lanyard/internal/token"
)

// owners are the truth about a few addresses: whose each was, and is.
type owners struct {
	mu      sync.Mutex
	step    int
	history map[string][]tenure
}

type tenure struct {
	identity string // empty: nobody's
	from     int
}

func (o *owners) set(ip, identity string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.step++
	o.history[ip] = append(o.history[ip], tenure{identity, o.step})
}

func (o *owners) now() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.step
}

// since returns who had the address at any time from a step on.
func (o *owners) since(ip string, step int) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var who []string
	for _, t := range slices.Backward(o.history[ip]) {
		who = append(who, t.identity)
		if t.from <= step {
			break
		}
	}
	return who
}

// Pods come and go on a few addresses, each with an identity of its own, while
// 100,000 requests are made over real connections; what Kubernetes tells comes
// late and in any order. Whoever has an address gets the token of its own
// identity, or none.
func TestChurnUnderLoadGivesNobodyAnotherPodsToken(t *testing.T) {
	const addresses, identities, requests = 8, 500, 100_000
	var clock atomic.Int64
	clock.Store(int64(time.Second))
	now := func() time.Time { return began.Add(time.Duration(clock.Load())) }
	p := newPorts()
	w := empty(Config{Node: "n1", Arrivals: p, Began: began, Now: now})
	for i := range identities {
		w.put(slimmed(t, identity(i)))
		w.put(slimmed(t, bindingOf(i)))
	}
	server := httptest.NewServer(churned(t, w))
	defer server.Close()

	truth := &owners{history: map[string][]tenure{}}
	ctx, stop := context.WithCancel(t.Context())
	var churn, load sync.WaitGroup
	pods := 0
	churn.Go(func() { pods = shuffle(ctx, w, p, truth, &clock, addresses, identities) })
	var issued, refused atomic.Int64
	for i := range addresses {
		load.Go(func() {
			ip := fmt.Sprintf("127.9.0.%d", i+1)
			client := clientFrom(ip)
			defer client.CloseIdleConnections()
			for range requests / addresses {
				before := truth.now()
				status, resource, err := askToken(client, server.URL)
				if err != nil {
					t.Error(err)
					return
				}
				if status != http.StatusOK {
					refused.Add(1)
					continue
				}
				issued.Add(1)
				if who := truth.since(ip, before); !slices.Contains(who, resource) {
					t.Errorf("%s belonged to %v and was given the token of %s", ip, who, resource)
					return
				}
			}
		})
	}
	load.Wait()
	stop()
	churn.Wait()
	if issued.Load() < requests/10 || pods < 1000 {
		t.Errorf("%d tokens and %d refusals for %d pods: too little to mean anything", issued.Load(), refused.Load(), pods)
	}
}

// churned is the agent's handler: everything but Kubernetes, the network's
// ports and the metadata service is as it runs. A token is the resource id of
// its identity.
func churned(t *testing.T, w *Watcher) http.Handler {
	src := &source.Source{Patience: time.Minute, Machine: token.Func(func(_ context.Context, r token.Request) (token.Token, error) {
		return token.Token{AccessToken: r.ResourceID, ExpiresOn: time.Now().Add(24 * time.Hour), Resource: r.Resource}, nil
	})}
	logger := slog.New(slog.DiscardHandler)
	j := &journal.Journal{Events: nowhere{}, Audit: logger, Log: logger, Node: "n1"}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = src.Run(ctx) })
	running.Go(func() { _ = j.Run(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	return &nmi.Server{Node: w, Tokens: src, Recorder: j, Logger: logger, Metrics: nmi.NewMetrics(), Limits: &nmi.Limits{Inflight: 1000, Rate: 1e6}}
}

// shuffle gives the addresses to new pods and takes them away until ctx ends,
// and returns how many pods there were. The watch tells of it later, in any order.
func shuffle(ctx context.Context, w *Watcher, p *ports, truth *owners, clock *atomic.Int64, addresses, identities int) (pods int) {
	random := rand.New(rand.NewPCG(3, 4))
	owner := map[string]string{} // address -> uid
	var late []func()
	tick := time.NewTicker(100 * time.Microsecond) // leaves the processors to the requests
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		clock.Add(int64(random.IntN(400)) * int64(time.Millisecond))
		ip := fmt.Sprintf("127.9.0.%d", random.IntN(addresses)+1)
		switch uid := owner[ip]; random.IntN(4) {
		case 0:
			if uid != "" {
				p.unplug(ip)
				truth.set(ip, "")
				delete(owner, ip)
				late = append(late, func() { w.remove(report(uid, ip, time.Time{})) })
			}
		case 1:
			if uid == "" {
				clock.Add(int64(time.Second)) // kubelet frees an address a second after its pod at the earliest
				pods++
				uid, number := fmt.Sprint(pods), random.IntN(identities)
				since := began.Add(time.Duration(clock.Load()))
				truth.set(ip, identity(number).Spec.ResourceID)
				p.plug(ip, since)
				owner[ip] = uid
				late = append(late, func() { tell(w, uid, ip, number, since) })
			}
		default:
			if len(late) > 0 {
				i := random.IntN(len(late))
				late[i]()
				late = slices.Delete(late, i, i+1)
			}
		}
	}
	return pods
}

// tell is what the watch says of a pod that has started, and of its assignment.
func tell(w *Watcher, uid, ip string, number int, started time.Time) {
	pod := report(uid, ip, started)
	pod.Labels, pod.Spec.NodeName = map[string]string{v1.BindingLabel: fmt.Sprint("app-", number)}, "n1"
	assigned := &v1.AzureAssignedIdentity{Spec: v1.AzureAssignedIdentitySpec{
		Pod: pod.Name, PodNamespace: pod.Namespace, NodeName: "n1", AzureIdentityRef: identity(number),
	}}
	assigned.Namespace, assigned.Name = "default", "a-"+uid
	if slimAssigned, err := slim(assigned); err == nil {
		w.put(slimAssigned)
	}
	w.put(pod)
}

// clientFrom is a client whose connections come from an address.
func clientFrom(ip string) *http.Client {
	dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), 0))}
	return &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
}

func askToken(client *http.Client, base string) (status int, accessToken string, err error) {
	req, err := http.NewRequest(http.MethodGet, base+"/metadata/identity/oauth2/token?resource="+url.QueryEscape("https://vault.azure.net"), nil)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Metadata", "true")
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp.StatusCode, "", err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	err = json.Unmarshal(body, &answer)
	return resp.StatusCode, answer.AccessToken, err
}
