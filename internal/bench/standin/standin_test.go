package standin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func send(t *testing.T, method, target, body string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}

func TestMetadataGivesEachIdentityATokenOfItsOwn(t *testing.T) {
	c := &imds.Client{BaseURL: serve(t, Config{}.metadata())}
	t.Cleanup(c.CloseIdleConnections)
	for name, r := range map[string]token.Request{
		"by resource id": {Resource: "r", ResourceID: "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/" + IdentityName(42)},
		"by client id":   {Resource: "r", ClientID: ClientID(42)},
		"by object id":   {Resource: "r", ObjectID: ObjectID(42)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.Token(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if got.ClientID != ClientID(42) || !strings.Contains(got.AccessToken, string(MarkText(42))) || strings.Contains(got.AccessToken, string(MarkText(43))) {
				t.Errorf("the token is of %s, or its mark is wrong", got.ClientID)
			}
			if left := time.Until(got.ExpiresOn); left < 23*time.Hour {
				t.Errorf("it lasts %s", left)
			}
		})
	}
	if _, err := c.Token(t.Context(), token.Request{Resource: "r"}); err == nil {
		t.Error("a request without an identity gets a token")
	}
}

func TestMetadataCanHang(t *testing.T) {
	c := &imds.Client{BaseURL: serve(t, Config{}.metadata())}
	t.Cleanup(c.CloseIdleConnections)
	if status, _ := send(t, http.MethodPost, c.BaseURL+HangPath, ""); status != http.StatusOK {
		t.Fatalf("telling it to hang: %d", status)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Token(ctx, token.Request{Resource: "r", ClientID: ClientID(1)}); err == nil || ctx.Err() == nil {
		t.Errorf("it answered: %v", err)
	}
}

func TestEntraAnswersBothVersions(t *testing.T) {
	base := serve(t, newCloud(Config{BaseURL: "https://cloud"}))
	form := url.Values{"client_id": {ClientID(7)}, "client_secret": {"s"}, "grant_type": {"client_credentials"}}
	for name, tt := range map[string]struct {
		path, field, value string
		expires            any
	}{
		"version 1": {"/t/oauth2/token", "resource", "https://r", "3599"},
		"version 2": {"/t/oauth2/v2.0/token", "scope", "https://r/.default", float64(3599)},
	} {
		t.Run(name, func(t *testing.T) {
			form := url.Values{tt.field: {tt.value}, "client_id": form["client_id"]}
			status, body := send(t, http.MethodPost, base+tt.path, form.Encode())
			var got map[string]any
			if err := json.Unmarshal(body, &got); err != nil || status != http.StatusOK {
				t.Fatalf("%d, %v", status, err)
			}
			if got["expires_in"] != tt.expires || !strings.Contains(got["access_token"].(string), string(MarkText(7))) {
				t.Errorf("expires_in %v; or another token", got["expires_in"])
			}
		})
	}
}

func TestAMachineChangesAfterAWhileAndOnlyOnceAtATime(t *testing.T) {
	base := serve(t, newCloud(Config{BaseURL: "https://cloud", ARMDelay: time.Hour}))
	const at = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/"
	patch := func(machine, identity, value string) int {
		kind := "UserAssigned"
		if value == "null" {
			kind = "None"
		}
		status, _ := send(t, http.MethodPatch, base+at+machine, `{"identity":{"type":"`+kind+`","userAssignedIdentities":{"`+identity+`":`+value+`}}}`)
		return status
	}
	stats := func() (s Stats) {
		status, body := send(t, http.MethodGet, base+StatsPath, "")
		if err := json.Unmarshal(body, &s); err != nil || status != http.StatusOK {
			t.Fatalf("%d, %v", status, err)
		}
		return s
	}
	if status, _ := send(t, http.MethodPost, base+LatencyPath, "machine=quick&latency=0s"); status != http.StatusOK {
		t.Fatalf("setting the latency: %d", status)
	}
	if got := patch("slow", "/a", "{}"); got != http.StatusOK {
		t.Errorf("the first change: %d", got)
	}
	if got := patch("slow", "/b", "{}"); got != http.StatusConflict {
		t.Errorf("a change beside another: %d", got)
	}
	if got := patch("quick", "/A", "{}"); got != http.StatusOK {
		t.Errorf("a change of another machine: %d", got)
	}
	for stats().Identities["quick"] != 1 { // the test's own deadline bounds it
		if t.Context().Err() != nil {
			t.Fatal("the change of the quick machine does not end")
		}
	}
	want := Stats{Changes: 3, Conflicts: 1, UnderWay: map[string]int{"slow": 1}, Identities: map[string]int{"slow": 0, "quick": 1}}
	if diff := cmp.Diff(want, stats()); diff != "" {
		t.Error(diff)
	}
	if got := patch("quick", "/a", "null"); got != http.StatusOK {
		t.Errorf("taking an identity away: %d", got)
	}
	for stats().Identities["quick"] != 0 {
		if t.Context().Err() != nil {
			t.Fatal("the identity does not go")
		}
	}
	status, body := send(t, http.MethodGet, base+at+"slow", "")
	if status != http.StatusOK || !bytes.Contains(body, []byte(`"Updating"`)) {
		t.Errorf("the slow machine: %d %s", status, body)
	}
}

func TestTheBareServerGivesTheRecordedAnswer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "answer.json")
	recorded := Recorded{Header: http.Header{"Content-Type": {"application/json"}, "X-Own": {"1"}, "Date": {"long ago"}}, Body: []byte(`{"a":1}`)}
	if err := recorded.Save(file); err != nil {
		t.Fatal(err)
	}
	r, err := ReadRecorded(file)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(serve(t, r) + "/whatever")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || string(body) != `{"a":1}` || res.Header.Get("X-Own") != "1" || res.ContentLength != 7 || res.Header.Get("Date") == "long ago" {
		t.Errorf("%q, %v, %v", body, res.Header, err)
	}
}

func TestMainReadsItsOwnCommandLine(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Main(ctx, Config{Listen: "127.0.0.1:0", Latency: time.Second, BaseURL: "https://x"}.Args("metadata"), in)
		in.Close()
	}()
	line, err := io.ReadAll(io.LimitReader(out, 10))
	if err != nil || string(line) != "listening\n" {
		t.Errorf("it said %q, %v", line, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{nil, {"nothing"}, {"metadata", "--wrong"}, Config{Answer: "/does/not/exist"}.Args("bare")} {
		if err := Main(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
