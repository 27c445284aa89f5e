package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestWatchTellsOfEachAnswerAndShowsNoToken(t *testing.T) {
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked.Add(1) {
		case 1:
			w.Header().Set("Retry-After", "2")
			http.Error(w, "later", http.StatusTooManyRequests)
		case 2:
			panic(http.ErrAbortHandler)
		case 3:
			_, _ = io.WriteString(w, jwt(testClaims)) // in the wrong form: it must not be shown
		default:
			if r.Header.Get("Metadata") != "true" || r.URL.Query().Get("resource") != "r" {
				http.Error(w, "a wrong request", http.StatusBadRequest)
				return
			}
			_, _ = io.WriteString(w, `{"access_token":"`+jwt(testClaims)+`","expires_on":"1795244400"}`)
		}
	}))
	t.Cleanup(server.Close)
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"watch", "--url", server.URL, "--resource", "r", "--count", "4", "--pause", "1ms"}, &stdout, &stderr); code != 0 {
		t.Fatalf("exit %d: %s", code, &stderr)
	}
	if strings.Contains(stdout.String(), strings.Split(jwt(testClaims), ".")[1]) {
		t.Errorf("a token is printed: %s", &stdout)
	}
	var got []line
	for d := json.NewDecoder(&stdout); d.More(); {
		var l line
		if err := d.Decode(&l); err != nil {
			t.Fatal(err)
		}
		if l.At.IsZero() || l.Millis <= 0 {
			t.Errorf("without a time: %+v", l)
		}
		if l.Status == 0 && l.Error != "" {
			l.Error = "no answer"
		}
		got = append(got, l)
	}
	expires := time.Unix(1795244400, 0).UTC()
	want := []line{
		{Status: 429, RetryAfter: "2", Error: "later"},
		{Error: "no answer"},
		{Status: 200, Error: "the metadata service's answer is no JSON"},
		{Status: 200, Expires: &expires, Identity: &identity{AppID: "client-1", ObjectID: "object-1", TenantID: "tenant-1", ResourceID: "/subscriptions/s/identity-1"}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(line{}, "At", "Millis")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWatchExplainsWrongCalls(t *testing.T) {
	for _, args := range [][]string{{"watch", "x"}, {"watch", "--url", "%"}, {"watch", "--timeout", "0s"}, {"watch", "--vault", "v"}} {
		var stdout, stderr bytes.Buffer
		if code := run(t.Context(), args, &stdout, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%v: exit %d: %s", args, code, &stderr)
		}
	}
}
