package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// A line is what watch prints of one request for a token.
type line struct {
	At         time.Time  `json:"at"` // when it was sent
	Millis     float64    `json:"millis"`
	Status     int        `json:"status"`               // 0 means that there was no answer
	Identity   *identity  `json:"identity,omitempty"`   // whom the token speaks for
	Expires    *time.Time `json:"expires,omitempty"`    // the answer's expires_on
	RetryAfter string     `json:"retryAfter,omitempty"` // the answer's header
	Error      string     `json:"error,omitempty"`
}

// watch asks the metadata service for a token again and again, each time on a
// connection of its own, and prints a line for each answer: what a fault looks
// like from inside a pod.
func watch(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("workload watch", flag.ContinueOnError)
	flags.SetOutput(stderr)
	at := flags.String("url", metadataURL, "token endpoint of the metadata service")
	resource := flags.String("resource", "https://vault.azure.net", "resource to get a token for")
	pause := flags.Duration("pause", 100*time.Millisecond, "time between an answer and the next request")
	timeout := flags.Duration("timeout", 5*time.Second, "how long to wait for an answer")
	count := flags.Int("count", 0, "how often to ask; 0 means until a signal comes")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	endpoint, err := url.Parse(*at)
	if err != nil || flags.NArg() > 0 || *timeout <= 0 {
		fmt.Fprintf(stderr, "workload watch: --url must be a URL, --timeout positive, and every setting is a flag\n%s", usage)
		return 2
	}
	endpoint.RawQuery = url.Values{"api-version": {"2018-02-01"}, "resource": {*resource}}.Encode()
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	out := json.NewEncoder(stdout)
	for n := 1; ctx.Err() == nil; n++ {
		if err := out.Encode(ask(ctx, client, endpoint.String())); err != nil {
			fmt.Fprintln(stderr, "workload:", err)
			return 1
		}
		if n == *count {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(*pause):
		}
	}
	return 0
}

func ask(ctx context.Context, client *http.Client, endpoint string) (l line) {
	l.At = time.Now()
	defer func() { l.Millis = millis(time.Since(l.At)) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		l.Error = err.Error()
		return l
	}
	req.Header.Set("Metadata", "true")
	res, err := client.Do(req)
	if err != nil {
		l.Error = err.Error()
		return l
	}
	defer res.Body.Close()
	l.Status, l.RetryAfter = res.StatusCode, res.Header.Get("Retry-After")
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		l.Error = err.Error()
		return l
	}
	if res.StatusCode != http.StatusOK {
		l.Error = strings.TrimSpace(string(body[:min(len(body), 2048)]))
		return l
	}
	var answer struct {
		AccessToken string `json:"access_token"`
		ExpiresOn   string `json:"expires_on"` // seconds since 1970
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		l.Error = "the metadata service's answer is no JSON" // it may hold a token: not shown
		return l
	}
	if l.Identity = whoIs(answer.AccessToken); l.Identity == nil {
		l.Error = "the metadata service's answer has no access_token"
	}
	if seconds, err := strconv.ParseInt(answer.ExpiresOn, 10, 64); err == nil {
		expires := time.Unix(seconds, 0).UTC()
		l.Expires = &expires
	}
	return l
}
