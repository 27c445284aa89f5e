package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start serves h at a free port of both loopback addresses.
func start(ctx context.Context, t *testing.T, h http.Handler) (port uint16, done <-chan error) {
	t.Helper()
	logger := slog.New(slog.DiscardHandler)
	for range 100 { // a port that is free for IPv4 may be taken for IPv6
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port = uint16(l.Addr().(*net.TCPAddr).Port)
		l.Close()
		listeners, err := Listen(ctx, port, logger)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- Serve(ctx, listeners, h, logger) }()
		return port, served
	}
	t.Fatal("no port is free")
	return 0, nil
}

func TestItAnswersAtBothLoopbackAddressesAndEndsWhenAsked(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	port, done := start(ctx, t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "here") }))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		res, err := client.Get(fmt.Sprintf("http://%s:%d/", host, port))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if string(body) != "here" {
			t.Errorf("%s answered %q", host, body)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestARunningRequestIsFinishedAndAnEndlessOneIsNot(t *testing.T) {
	for name, endless := range map[string]bool{"one that ends": false, "one that does not": true} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			began := make(chan struct{})
			port, done := start(ctx, t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(began)
				<-ctx.Done()
				if endless {
					<-r.Context().Done() // the connection is closed
				}
				fmt.Fprint(w, "finished")
			}))
			got := make(chan string, 1)
			go func() {
				res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
				if err != nil {
					got <- ""
					return
				}
				defer res.Body.Close()
				body, _ := io.ReadAll(res.Body)
				got <- string(body)
			}()
			<-began
			asked := time.Now()
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if took := time.Since(asked); took > goodbye+2*time.Second || !endless && took > goodbye {
				t.Errorf("it took %s", took)
			}
			if s := <-got; (s == "finished") == endless {
				t.Errorf("the answer is %q", s)
			}
		})
	}
}

func TestAPortThatIsTakenIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(t.Context(), uint16(l.Addr().(*net.TCPAddr).Port), slog.New(slog.DiscardHandler)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	port, done := start(ctx, t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "here") }))
	address := fmt.Sprintf("127.0.0.1:%d", port)
	var open []net.Conn
	for range maxConnections {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "timeout") {
		t.Errorf("one more is served: %v", err)
	}
	c.Close()
	for _, c := range open {
		c.Close()
	}
	if err := Probe(t.Context(), "http://"+address, time.Millisecond); err != nil {
		t.Errorf("once they are closed: %v", err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProbeWaitsForAProxyThatStillStarts(t *testing.T) {
	f := newFixture(t)
	f.write(t, "") // not ready
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close() // connections are refused
	probed := make(chan error, 1)
	go func() { probed <- Probe(t.Context(), "http://"+address, time.Millisecond) }()
	if l, err = net.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1)
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, []net.Listener{l}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.server.ServeHTTP(w, r)
			select {
			case asked <- struct{}{}:
			default:
			}
		}), slog.New(slog.DiscardHandler))
	}()
	<-asked
	select {
	case err := <-probed:
		t.Errorf("it ended early: %v", err)
	default:
	}
	f.write(t, federated)
	if err := <-probed; err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProbeGivesUpAndSaysWhy(t *testing.T) {
	f := newFixture(t)
	f.write(t, "")
	for base, want := range map[string]string{f.url: "it is empty", "http://127.0.0.1:1": "refused"} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := Probe(ctx, base, 5*time.Millisecond); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		cancel()
	}
}
