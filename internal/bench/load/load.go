// Package load asks an HTTP server from inside the network namespaces of many
// pods, as cheaply as it can, so that what is measured is the server.
//
//	Run, keep-alive   one connection per pod, one epoll loop; a request goes
//	                  out on the connection that has rested longest
//	Run, otherwise    a thread enters a pod, makes some connections one after
//	                  the other, and goes on to the next pod
//	Ask               one request with net/http
//
// It speaks as much of HTTP as the servers that it measures: status 200 and a
// Content-Length. Every answer is checked for the text that only the right
// pod's token holds.
package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/bench/meter"
	"github.com/lanyard-id/lanyard/internal/lab/netns"
)

// patience is how long an answer may take before a run fails.
const patience = 15 * time.Second

// A Source is a pod that asks: from where, what, and what a right answer holds.
type Source struct {
	NS   *netns.NS
	Path string // path and query
	Want []byte // text that every answer must hold
}

// A Config describes a run.
type Config struct {
	Sources     []Source
	Host        string         // of the Host header; empty means Target
	Target      netip.AddrPort // what the pods dial
	Concurrency int            // requests under way at any time; at most one per source
	KeepAlive   bool
	For         time.Duration
	PID         int // the server, whose processor time is read; 0 means none
}

// A Result is what came of a run.
type Result struct {
	Requests  int
	Elapsed   time.Duration
	CPU       time.Duration   // of the server
	Latencies []time.Duration // one per request
}

// PerSecond is the throughput.
func (r Result) PerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Requests) / r.Elapsed.Seconds()
}

// CPUPerRequest is the server's processor time for one request.
func (r Result) CPUPerRequest() time.Duration {
	if r.Requests == 0 {
		return 0
	}
	return r.CPU / time.Duration(r.Requests)
}

// Add is both runs as one.
func (r Result) Add(o Result) Result {
	return Result{
		Requests: r.Requests + o.Requests, Elapsed: r.Elapsed + o.Elapsed, CPU: r.CPU + o.CPU,
		Latencies: append(append(make([]time.Duration, 0, len(r.Latencies)+len(o.Latencies)), r.Latencies...), o.Latencies...),
	}
}

// Run asks for the time that c says. The first answer that is not what its pod
// has a right to ends it.
func Run(ctx context.Context, c Config) (Result, error) {
	if len(c.Sources) == 0 || c.Concurrency < 1 {
		return Result{}, errors.New("a run needs sources and at least one request at a time")
	}
	c.Concurrency = min(c.Concurrency, len(c.Sources))
	asks := make([][]byte, len(c.Sources))
	for i, s := range c.Sources {
		asks[i] = c.request(s)
	}
	if c.KeepAlive {
		return c.runKeepAlive(ctx, asks)
	}
	return c.runAnew(ctx, asks)
}

func (c Config) request(s Source) []byte {
	host := c.Host
	if host == "" {
		host = c.Target.String()
	}
	end := "\r\n"
	if !c.KeepAlive {
		end = "Connection: close\r\n\r\n"
	}
	return []byte("GET " + s.Path + " HTTP/1.1\r\nHost: " + host + "\r\nMetadata: true\r\nUser-Agent: bench\r\n" + end)
}

// measured runs what is to be measured, between two looks at the server.
func (c Config) measured(work func() error, r *Result) error {
	var before time.Duration
	var err error
	if c.PID != 0 {
		if before, err = meter.CPU(c.PID); err != nil {
			return err
		}
	}
	started := time.Now()
	if err := work(); err != nil {
		return err
	}
	r.Elapsed, r.Requests = time.Since(started), len(r.Latencies)
	if c.PID == 0 {
		return nil
	}
	after, err := meter.CPU(c.PID)
	r.CPU = after - before
	return err
}

// dial connects a socket of the calling thread's network namespace. What
// takes longer than patience fails.
func dial(target netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, fmt.Errorf("making a socket: %w", err)
	}
	limit := unix.NsecToTimeval(int64(patience))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
	)
	if err == nil {
		err = retry(func() error {
			return unix.Connect(fd, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()})
		})
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("connecting to %s: %w", target, err), unix.Close(fd))
	}
	return fd, nil
}

// retry calls again what a signal has interrupted: the runtime sends itself
// some.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func read(fd int, b []byte) (n int, err error) {
	err = retry(func() (err error) { n, err = unix.Read(fd, b); return err })
	return max(n, 0), err
}

func write(fd int, b []byte) error {
	var n int
	err := retry(func() (err error) { n, err = unix.Write(fd, b); return err })
	if err == nil && n != len(b) {
		err = fmt.Errorf("only %d of %d bytes were taken", n, len(b))
	}
	if err != nil {
		return fmt.Errorf("sending a request: %w", err)
	}
	return nil
}

var (
	headEnd = []byte("\r\n\r\n")
	okLine  = []byte("HTTP/1.1 200 ")
	length  = []byte("\r\nContent-Length: ")
)

// complete reports whether b holds a whole answer, and refuses one that is
// not what is wanted.
func complete(b, want []byte) (bool, error) {
	head := bytes.Index(b, headEnd)
	if head < 0 {
		return false, nil
	}
	if !bytes.HasPrefix(b, okLine) {
		return false, fmt.Errorf("the answer is not 200: %.300q", b)
	}
	at := bytes.Index(b[:head+2], length)
	if at < 0 {
		return false, fmt.Errorf("the answer has no Content-Length: %.300q", b[:head])
	}
	number, _, _ := bytes.Cut(b[at+len(length):], []byte("\r"))
	n, err := strconv.Atoi(string(number))
	if err != nil {
		return false, fmt.Errorf("the answer's Content-Length is %.40q", number)
	}
	body := b[head+len(headEnd):]
	if len(body) < n {
		return false, nil
	}
	if len(body) > n {
		return false, fmt.Errorf("the answer is %d bytes longer than it says", len(body)-n)
	}
	if !bytes.Contains(body, want) {
		return false, errors.New("the answer is not this pod's token")
	}
	return true, nil
}

// An Answer is what came of one request.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Took   time.Duration
}

// Ask sends one request from a source, on a connection of its own. It is an
// error if no answer comes within limit; Took tells how long that was known
// in either case.
func Ask(ctx context.Context, s Source, target netip.AddrPort, limit time.Duration) (a Answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target.String()+s.Path, nil)
	if err != nil {
		return a, err
	}
	req.Header.Set("Metadata", "true")
	client := http.Client{
		Transport:     &http.Transport{DialContext: s.NS.DialContext, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	started := time.Now()
	defer func() { a.Took = time.Since(started) }()
	res, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	a.Status, a.Header = res.StatusCode, res.Header
	a.Body, err = io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return a, err
}
