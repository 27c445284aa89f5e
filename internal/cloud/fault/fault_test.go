package fault

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served answers 200 "through" behind a set of faults; the header Machine stands for the machine.
func served(t *testing.T, s *Set) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		through := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if o, injected := OperationOf(r.Context()); injected {
				w.Header().Set("Operation", o.Code)
			}
			_, _ = w.Write([]byte("through"))
		})
		s.Wrap(through, r.Host, r.Header.Get("Machine"), func(int) string { return "form" }).ServeHTTP(w, r)
	}))
	t.Cleanup(func() { _, _ = s.Clear(); srv.Close() })
	return srv
}

func add(t *testing.T, s *Set, r Rule) Rule {
	t.Helper()
	r, err := s.Add(r)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ask(t *testing.T, srv *httptest.Server, method, host, path, machine string) (*http.Response, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	r.Header.Set("Machine", machine)
	resp, err := srv.Client().Do(r)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func TestWhichRequestsARuleMeets(t *testing.T) {
	const ss = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/"
	for name, tt := range map[string]struct {
		rule                        Rule
		method, host, path, machine string
		want                        bool
	}{
		"no condition":                           {Rule{}, "GET", "a.b", "/x", "", true},
		"the method, in any case":                {Rule{Method: "patch"}, "PATCH", "a.b", "/x", "", true},
		"another method":                         {Rule{Method: "PATCH"}, "GET", "a.b", "/x", "", false},
		"the host":                               {Rule{Host: "management.azure.com"}, "GET", "management.azure.com", "/x", "", true},
		"a host whose dots are not wild":         {Rule{Host: "management.azure.com"}, "GET", "managementxazure.com", "/x", "", false},
		"a star is one label":                    {Rule{Host: "*.vault.azure.net"}, "GET", "a.vault.azure.net", "/x", "", true},
		"and no more":                            {Rule{Host: "*.vault.azure.net"}, "GET", "a.b.vault.azure.net", "/x", "", false},
		"a path, in any case":                    {Rule{Path: "/Subscriptions/*"}, "GET", "a.b", "/subscriptions/x", "", true},
		"a star ends at a slash":                 {Rule{Path: "/subscriptions/*"}, "GET", "a.b", "/subscriptions/x/y", "", false},
		"two stars do not":                       {Rule{Path: "**/virtualMachineScaleSets/*"}, "GET", "a.b", ss + "one", "", true},
		"a resource below is another path":       {Rule{Path: "**/virtualMachineScaleSets/*"}, "GET", "a.b", ss + "one/virtualMachines/0", "", false},
		"a slash at the end is none":             {Rule{Path: "/x"}, "GET", "a.b", "/x/", "", true},
		"an escaped slash is one":                {Rule{Path: "/x/y"}, "GET", "a.b", "/x%2fy", "", true},
		"the machine":                            {Rule{Machine: "**/one/virtualMachines/*"}, "GET", "a.b", "/x", ss + "one/virtualMachines/3", true},
		"another machine":                        {Rule{Machine: "**/one/virtualMachines/*"}, "GET", "a.b", "/x", ss + "two/virtualMachines/3", false},
		"a machine's rule and no machine at all": {Rule{Machine: "**"}, "GET", "a.b", "/x", "", false},
		"a pattern that looks like a regexp":     {Rule{Path: "/x(.+"}, "GET", "a.b", "/x(.+", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			var s Set
			srv := served(t, &s)
			tt.rule.Status = 503
			rule := add(t, &s, tt.rule)
			resp, _, err := ask(t, srv, tt.method, tt.host, tt.path, tt.machine)
			if err != nil {
				t.Fatal(err)
			}
			if met := resp.StatusCode == 503; met != tt.want {
				t.Errorf("met: %t", met)
			}
			hits := 0
			if tt.want {
				hits = 1
			}
			rule.Hits = hits
			if diff := cmp.Diff([]Rule{rule}, s.List()); diff != "" {
				t.Errorf("list (-want +got)\n%s", diff)
			}
		})
	}
}

func TestWhatARuleDoes(t *testing.T) {
	t.Run("a status with its body and Retry-After, so many times", func(t *testing.T) {
		var s Set
		srv := served(t, &s)
		add(t, &s, Rule{Status: 429, Body: "busy", RetryAfter: Duration(1500 * time.Millisecond), Count: 2})
		var got []string
		for range 3 {
			resp, body, err := ask(t, srv, "GET", "h", "/", "")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, resp.Status+" "+body+" "+resp.Header.Get("Retry-After"))
		}
		if diff := cmp.Diff([]string{"429 Too Many Requests busy 2", "429 Too Many Requests busy 2", "200 OK through "}, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if rules := s.List(); len(rules) != 0 {
			t.Errorf("a rule that is used up is listed: %v", rules)
		}
	})
	t.Run("the host's own form if no body is given", func(t *testing.T) {
		var s Set
		srv := served(t, &s)
		add(t, &s, Rule{Status: 500})
		if _, body, err := ask(t, srv, "GET", "h", "/", ""); err != nil || body != "form" {
			t.Errorf("%q, %v", body, err)
		}
	})
	t.Run("latency and then the answer", func(t *testing.T) {
		var s Set
		srv := served(t, &s)
		add(t, &s, Rule{Latency: Duration(60 * time.Millisecond)})
		start := time.Now()
		if _, body, err := ask(t, srv, "GET", "h", "/", ""); err != nil || body != "through" || time.Since(start) < 60*time.Millisecond {
			t.Errorf("%q, %v after %v", body, err, time.Since(start))
		}
	})
	t.Run("a dropped connection", func(t *testing.T) {
		var s Set
		srv := served(t, &s)
		add(t, &s, Rule{Drop: true, Count: 1, Method: "POST"}) // a client retries a GET by itself
		if resp, _, err := ask(t, srv, "POST", "h", "/", ""); !errors.Is(err, io.EOF) {
			t.Errorf("%v, %v", resp, err)
		}
	})
	t.Run("the first of two rules that fit", func(t *testing.T) {
		var s Set
		srv := served(t, &s)
		add(t, &s, Rule{Status: 500, Count: 1})
		add(t, &s, Rule{Status: 502})
		for _, want := range []int{500, 502, 502} {
			if resp, _, err := ask(t, srv, "GET", "h", "/", ""); err != nil || resp.StatusCode != want {
				t.Errorf("%v, %v, want %d", resp, err, want)
			}
		}
	})
	t.Run("a word to the operation that the request starts", func(t *testing.T) {
		var s Set
		srv := served(t, &s)
		add(t, &s, Rule{Operation: &Operation{Code: "Boom"}})
		if resp, body, err := ask(t, srv, "GET", "h", "/", ""); err != nil || body != "through" || resp.Header.Get("Operation") != "Boom" {
			t.Errorf("%v %q, %v", resp, body, err)
		}
	})
}

func TestHangingRequestsAreLetGo(t *testing.T) {
	for name, end := range map[string]func(*Set, Rule, context.CancelFunc){
		"when the client leaves":    func(_ *Set, _ Rule, leave context.CancelFunc) { leave() },
		"when the rule is cleared":  func(s *Set, r Rule, _ context.CancelFunc) { _, _ = s.Clear(r.ID) },
		"when all are cleared":      func(s *Set, _ Rule, _ context.CancelFunc) { _, _ = s.Clear() },
		"when the rule's time ends": func(*Set, Rule, context.CancelFunc) {},
	} {
		t.Run(name, func(t *testing.T) {
			hit := make(chan string, 1)
			s := Set{OnHit: func(_ *http.Request, id string) { hit <- id }}
			srv := served(t, &s)
			rule := Rule{Hang: true, Count: 1, Method: "POST"}
			if strings.HasSuffix(name, "ends") {
				rule.For = Duration(100 * time.Millisecond)
			}
			rule = add(t, &s, rule)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			r, err := http.NewRequestWithContext(ctx, "POST", srv.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			answered := make(chan error, 1)
			wg.Go(func() {
				resp, err := srv.Client().Do(r)
				if err == nil {
					err = errors.Join(resp.Body.Close(), errors.New(resp.Status))
				}
				answered <- err
			})
			if id := <-hit; id != rule.ID {
				t.Errorf("hit %q", id)
			}
			select {
			case err := <-answered:
				if rule.For == 0 {
					t.Fatalf("answered at once: %v", err)
				}
			default:
			}
			end(&s, rule, leave)
			if err := <-answered; !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want no answer", err)
			}
		})
	}
}

func TestRulesThatMakeNoSense(t *testing.T) {
	for name, r := range map[string]Rule{
		"nothing at all":              {},
		"a success":                   {Status: 200},
		"no status at all":            {Status: 600},
		"two ways at once":            {Status: 500, Drop: true},
		"hang and drop":               {Hang: true, Drop: true},
		"a body and no status":        {Body: "x", Drop: true},
		"Retry-After and no status":   {RetryAfter: 1, Hang: true},
		"a negative count":            {Drop: true, Count: -1},
		"a negative time":             {Drop: true, For: -1},
		"an operation without effect": {Operation: &Operation{}},
	} {
		var s Set
		if _, err := s.Add(r); !errors.Is(err, ErrRule) || len(s.List()) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	var s Set
	one := add(t, &s, Rule{Drop: true})
	if _, err := s.Clear(one.ID, "9"); err == nil || len(s.List()) != 1 {
		t.Errorf("clearing one that there is not: %v", err)
	}
	if n, err := s.Clear(one.ID); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestARuleAsJSON(t *testing.T) {
	r := Rule{ID: "1", Host: "h", Status: 429, RetryAfter: Duration(5 * time.Second), Operation: &Operation{Duration: Duration(time.Minute)}}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"id":"1","host":"h","status":429,"retryAfter":"5s","operation":{"duration":"1m0s"},"hits":0}`
	if string(raw) != want {
		t.Errorf("%s, want %s", raw, want)
	}
	var back Rule
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
