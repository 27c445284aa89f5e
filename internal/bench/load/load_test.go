package load

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

func TestAnAnswerIsWholeOnlyWhenItIs(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nDate: x\r\n\r\n"
	for name, tt := range map[string]struct {
		got  string
		done bool
		err  string
	}{
		"all of it":                    {head + "token", true, ""},
		"a part of the header":         {head[:30], false, ""},
		"a part of the body":           {head + "tok", false, ""},
		"a refusal":                    {"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", false, "not 200"},
		"the token of another pod":     {head + "other", false, "not this pod's"},
		"two answers where one is due": {head + "tokentoken", false, "5 bytes longer"},
		"a body of unknown length":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, "no Content-Length"},
	} {
		t.Run(name, func(t *testing.T) {
			done, err := complete([]byte(tt.got), []byte("token"))
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want one with %q", err, tt.err)
			}
			if done != tt.done {
				t.Errorf("done is %t", done)
			}
		})
	}
}

func TestResultsAreSummed(t *testing.T) {
	a := Result{Requests: 300, Elapsed: 2 * time.Second, CPU: 30 * time.Millisecond, Latencies: []time.Duration{1}}
	b := Result{Requests: 100, Elapsed: 2 * time.Second, CPU: 10 * time.Millisecond, Latencies: []time.Duration{2, 3}}
	sum := a.Add(b)
	if diff := cmp.Diff(Result{400, 4 * time.Second, 40 * time.Millisecond, []time.Duration{1, 2, 3}}, sum); diff != "" {
		t.Error(diff)
	}
	if sum.PerSecond() != 100 || sum.CPUPerRequest() != 100*time.Microsecond {
		t.Errorf("%g requests per second, %s each", sum.PerSecond(), sum.CPUPerRequest())
	}
	if zero := (Result{}); zero.PerSecond() != 0 || zero.CPUPerRequest() != 0 {
		t.Error("an empty result divides by zero")
	}
}

// pods makes a node with a bridge and some pods on it.
func pods(t *testing.T, n int) (*netns.NS, []Source) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root, or in a user namespace (unshare -Urnm)")
	}
	node, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { node.Close() })
	if err := node.Setup(netns.Setup{Bridge: "cni0", BridgeAddresses: []netip.Prefix{netip.MustParsePrefix("10.244.0.1/24")}}); err != nil {
		t.Fatal(err)
	}
	var sources []Source
	for i := range n {
		pod, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pod.Close() })
		addr := netip.AddrFrom4([4]byte{10, 244, 0, byte(2 + i)})
		if err := node.Connect("cni0", fmt.Sprintf("pod%d", i), pod, netip.PrefixFrom(addr, 24), netip.MustParseAddr("10.244.0.1")); err != nil {
			t.Fatal(err)
		}
		sources = append(sources, Source{NS: pod, Path: "/token", Want: []byte("<" + addr.String() + ">")})
	}
	return node, sources
}

func TestEveryPodAsksAndGetsItsOwnAnswer(t *testing.T) {
	node, sources := pods(t, 5)
	target := netip.MustParseAddrPort("10.244.0.1:80")
	l, err := node.Listen(t.Context(), "tcp", target.String())
	if err != nil {
		t.Fatal(err)
	}
	hits := make(chan string, 1<<20)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		hits <- host + " " + r.Header.Get("Connection")
		if r.URL.Path != "/token" || r.Header.Get("Metadata") != "true" {
			w.WriteHeader(http.StatusTeapot)
		}
		fmt.Fprintf(w, "<%s>", host)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })

	for _, keep := range []bool{true, false} {
		r, err := Run(t.Context(), Config{Sources: sources, Target: target, Concurrency: 3, KeepAlive: keep, For: 200 * time.Millisecond, PID: os.Getpid()})
		if err != nil {
			t.Fatal(err)
		}
		if r.Requests == 0 || len(r.Latencies) != r.Requests || len(hits) != r.Requests || r.Elapsed < 200*time.Millisecond {
			t.Errorf("keep-alive %t: %d requests, %d latencies, %d seen, in %s", keep, r.Requests, len(r.Latencies), len(hits), r.Elapsed)
		}
		from := map[string]int{}
		for range r.Requests {
			from[<-hits]++
		}
		if len(from) != len(sources) {
			t.Errorf("keep-alive %t: requests came from %v", keep, from)
		}
	}

	sources[4].Want = []byte("<somebody else>")
	for _, keep := range []bool{true, false} {
		_, err := Run(t.Context(), Config{Sources: sources, Target: target, Concurrency: 5, KeepAlive: keep, For: 10 * time.Second})
		if err == nil || !strings.Contains(err.Error(), "not this pod's token") {
			t.Errorf("keep-alive %t: a wrong token passed: %v", keep, err)
		}
	}
	if _, err := Run(t.Context(), Config{}); err == nil {
		t.Error("a run without sources passed")
	}

	a, err := Ask(t.Context(), sources[0], target, time.Minute)
	if err != nil || a.Status != http.StatusOK || a.Took <= 0 || string(a.Body) != "<10.244.0.2>" {
		t.Errorf("Ask: %+v, %v", a, err)
	}
}

func TestARunEndsWithItsContext(t *testing.T) {
	node, sources := pods(t, 1)
	l, err := node.Listen(t.Context(), "tcp", "10.244.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<10.244.0.2>") })}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	for _, keep := range []bool{true, false} {
		if _, err := Run(ctx, Config{Sources: sources, Target: netip.MustParseAddrPort("10.244.0.1:80"), Concurrency: 1, KeepAlive: keep, For: time.Hour}); err == nil {
			t.Errorf("keep-alive %t: a run that was cut short looks like a whole one", keep)
		}
	}
}
