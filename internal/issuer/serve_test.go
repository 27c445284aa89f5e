package issuer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAServerAnswersForTwoDocumentsAndNothingElse(t *testing.T) {
	d := Documents{"https://a.example/cluster%201/x/", []Key{newKey()}}
	s := &Server{Source: &cluster{d, true, nil}, Logger: slog.New(slog.DiscardHandler)}
	web := httptest.NewServer(s)
	defer web.Close()
	// A request as it is on the wire: a client would clean the path.
	ask := func(method, path string) (int, http.Header, string) {
		t.Helper()
		conn, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, method+" "+path+" HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
		header := http.Header{}
		lines := strings.Split(head, "\r\n")
		for _, l := range lines[1:] {
			name, value, _ := strings.Cut(l, ": ")
			header.Set(name, value)
		}
		for status := 100; status < 600; status++ {
			if strings.HasPrefix(lines[0], "HTTP/1.1 "+itoa(status)) {
				return status, header, body
			}
		}
		return 0, header, body
	}
	const base = "/cluster%201/x"
	if status, header, _ := ask("GET", base+"/"+KeysPath); status != 503 || header.Get("Retry-After") == "" {
		t.Errorf("before it has read anything: %d", status)
	}
	if status, _, _ := ask("GET", "/healthz"); status != 503 {
		t.Errorf("healthz: %d", status)
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	keys := string(must(d.KeysJSON()))
	for path, want := range map[string]struct{ body, kind string }{
		base + "/" + ConfigurationPath: {string(must(d.ConfigurationJSON())), "application/json"},
		base + "/" + KeysPath:          {keys, "application/jwk-set+json"},
		base + "/" + KeysPath + "?x=y": {keys, "application/jwk-set+json"},
	} {
		status, header, body := ask("GET", path)
		if status != 200 || body != want.body || header.Get("Content-Type") != want.kind || header.Get("Cache-Control") != "public, max-age=3600" || header.Get("ETag") == "" {
			t.Errorf("%s: %d %v %s", path, status, header, body)
		}
		if status, header, body := ask("HEAD", path); status != 200 || body != "" || header.Get("Content-Length") != itoa(len(want.body)) {
			t.Errorf("HEAD %s: %d %v", path, status, header)
		}
	}
	for _, path := range []string{
		"/", "/" + KeysPath, base, base + "/", base + "/openid", base + "//openid/v1/jwks", base + "/../x/openid/v1/jwks", base + "/openid/v1/jwks/",
		base + "/openid/v1/%6awks", base + "/openid%2fv1%2fjwks", base + "/./openid/v1/jwks", base + "/openid/v1/../../../../etc/passwd", "/cluster 1/x/openid/v1/jwks",
		base + "/.well-known/openid-configuration%00", base + "/sa.key", "//" + KeysPath, "/%63luster%201/x/openid/v1/jwks", "/api/v1/secrets", "/healthz/", "/healthz/x",
	} {
		if status, _, body := ask("GET", path); status != 404 && status != 400 || strings.Contains(body, d.Keys[0].ID) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
		if status, header, _ := ask(method, base+"/"+KeysPath); status != 405 || header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: %d %v", method, status, header)
		}
	}
	if status, _, body := ask("GET", "/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %s", status, body)
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func TestTheLastGoodDocumentsAreServedWhenTheSourceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newKey(), newKey()
		from := &cluster{d: Documents{"https://a.example", []Key{a}}, err: errors.New("away")}
		s := &Server{Source: from, Logger: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		after := func(d time.Duration, want ...Key) {
			t.Helper()
			must(0, sleep(ctx, d))
			synctest.Wait()
			got, ok := s.Documents()
			if ok != (want != nil) || !got.Equal(Documents{got.Issuer, want}) {
				t.Errorf("served: %v, want %v", KeyIDs(got.Keys), KeyIDs(want))
			}
		}
		after(time.Second)
		from.err, from.complete = nil, true
		after(5*time.Second, a)
		from.err = errors.New("away")
		after(time.Hour, a)
		from.err, from.complete, from.d.Keys = nil, false, []Key{b} // another API server is away and may have a
		after(time.Minute, b, a)
		from.complete = true
		after(time.Minute, b)
		from.d.Keys = nil // what cannot be served changes nothing
		after(time.Minute, b)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
