package arm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	azarm "github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	azcloud "github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/mic/arm"
)

// A scaleSet behaves as one of Azure does: its ETag changes with each change, a
// PATCH names at most 150 identities, and it is done asynchronously.
type scaleSet struct {
	url string

	mu      sync.Mutex
	has     map[string]bool
	version int
	patches []int                     // how many identities each PATCH named
	polls   int                       // of operations
	before  func(s *scaleSet, n int)  // called before the nth PATCH
	failure func(n int) (text string) // of the operation of the nth PATCH
}

func (s *scaleSet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case strings.HasPrefix(r.URL.Path, "/operations/"):
		s.polls++
		if s.polls%2 == 1 {
			fmt.Fprint(w, `{"status":"InProgress"}`)
			return
		}
		if s.failure != nil {
			if text := s.failure(len(s.patches)); text != "" {
				fmt.Fprintf(w, `{"status":"Failed","error":%s}`, text)
				return
			}
		}
		fmt.Fprint(w, `{"status":"Succeeded"}`)
	case r.Method == http.MethodPatch:
		s.patch(w, r)
	default:
		users := map[string]any{}
		for id := range s.has {
			users[id] = map[string]any{}
		}
		kind := "UserAssigned"
		if len(users) == 0 {
			kind = "None"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"etag": s.etag(), "identity": map[string]any{"type": kind, "userAssignedIdentities": users}})
	}
}

func (s *scaleSet) etag() string { return fmt.Sprintf(`"v%d"`, s.version) }

func (s *scaleSet) patch(w http.ResponseWriter, r *http.Request) {
	if s.before != nil {
		s.before(s, len(s.patches))
	}
	var raw struct {
		Identity struct {
			Users map[string]*struct{} `json:"userAssignedIdentities"`
		} `json:"identity"`
	}
	if err := json.NewDecoder(r.Body).Decode(&raw); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.patches = append(s.patches, len(raw.Identity.Users))
	switch {
	case r.Header.Get("If-Match") != s.etag():
		w.WriteHeader(http.StatusPreconditionFailed)
		fmt.Fprint(w, `{"error":{"code":"PreconditionFailed","message":"the ETag differs"}}`)
		return
	case len(raw.Identity.Users) > 150:
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":{"code":"TooMany","message":"more than 150"}}`)
		return
	}
	for id, v := range raw.Identity.Users {
		if v == nil {
			delete(s.has, id)
		} else {
			s.has[id] = true
		}
	}
	s.version++
	w.Header().Set("Azure-AsyncOperation", s.url+"/operations/1?api-version=1")
	if s.version%2 == 0 {
		w.WriteHeader(http.StatusAccepted)
	}
}

func start(t *testing.T, s *scaleSet) *arm.Client {
	t.Helper()
	srv := httptest.NewTLSServer(s)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	if s.has == nil {
		s.has = map[string]bool{}
	}
	return &arm.Client{Source: &arm.Connection{Credential: credential{}, Options: azarm.ClientOptions{DisableRPRegistration: true, ClientOptions: policy.ClientOptions{
		Transport: srv.Client(),
		Retry:     policy.RetryOptions{MaxRetries: -1},
		Cloud:     azcloud.Configuration{Services: map[azcloud.ServiceName]azcloud.ServiceConfiguration{azcloud.ResourceManager: {Endpoint: srv.URL, Audience: "a"}}},
	}}}}
}

func machineID() azure.ResourceID {
	return must(azure.ParseResourceID(group + "/providers/Microsoft.Compute/virtualMachineScaleSets/s"))
}

func some(from, to int) (out []azure.ResourceID) {
	for i := from; i < to; i++ {
		out = append(out, must(azure.ParseResourceID(fmt.Sprint(idPrefix, "i", i))))
	}
	return out
}

func TestAMachineThatChangedMeanwhileIsReadAgain(t *testing.T) {
	t.Parallel() // the SDK asks once a second
	s := &scaleSet{before: func(s *scaleSet, n int) {
		if n < 2 { // somebody is faster, twice
			s.has[some(100+n, 101+n)[0].String()] = true
			s.version++
		}
	}}
	if err := start(t, s).Update(t.Context(), machineID(), some(0, 1), nil); err != nil {
		t.Fatal(err)
	}
	if len(s.has) != 3 || len(s.patches) != 3 {
		t.Errorf("it has %v after %d requests", s.has, len(s.patches))
	}
	s.before = func(s *scaleSet, _ int) { s.version++ } // somebody is always faster
	var e *arm.Error
	if err := start(t, s).Update(t.Context(), machineID(), some(1, 2), nil); !errors.As(err, &e) || e.Status != http.StatusPreconditionFailed {
		t.Errorf("got %v", err)
	}
}

func TestManyIdentitiesTakeSeveralRequestsAndNoneThatIsNotNeeded(t *testing.T) {
	t.Parallel() // the SDK asks once a second
	s := &scaleSet{}
	c := start(t, s)
	if err := c.Update(t.Context(), machineID(), some(0, 310), nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), machineID(), some(305, 320), some(0, 160)); err != nil {
		t.Fatal(err)
	}
	if err := c.Update(t.Context(), machineID(), some(310, 320), some(0, 5)); err != nil { // it is so already
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{150, 150, 10, 150, 20}, s.patches); diff != "" || len(s.has) != 160 {
		t.Errorf("it has %d (-want +got)\n%s", len(s.has), diff)
	}
	if s.polls == 0 {
		t.Error("nobody asked whether the change was done")
	}
}

func TestAnOperationThatFailsLaterIsAnErrorWithItsCode(t *testing.T) {
	t.Parallel() // the SDK asks once a second
	bad := some(7, 8)[0]
	s := &scaleSet{failure: func(int) string {
		return fmt.Sprintf(`{"code":"FailedIdentityOperation","message":"Resource '%s' was not found."}`, strings.ToUpper(bad.String()))
	}}
	err := start(t, s).Update(t.Context(), machineID(), some(0, 9), nil)
	if !arm.BlamesIdentity(err) || arm.Gone(err) {
		t.Fatalf("got %v", err)
	}
	if diff := cmp.Diff([]int{7}, arm.Blamed(err, some(0, 80))); diff != "" {
		t.Errorf("blamed (-want +got)\n%s", diff)
	}
}

func TestWhomAnErrorBlames(t *testing.T) {
	ids := []azure.ResourceID{must(azure.ParseResourceID(idPrefix + "a")), must(azure.ParseResourceID(idPrefix + "ab")), must(azure.ParseResourceID(idPrefix + "c"))}
	for _, x := range []struct {
		name    string
		code    string
		message string
		want    []int
	}{
		{"one, quoted", "FailedIdentityOperation", "Resource '" + ids[0].String() + "' was not found.", []int{0}},
		{"one whose name begins like another's", "FailedIdentityOperation", "Resource '" + ids[1].String() + "' was not found.", []int{1}},
		{"several in a list", "LinkedAuthorizationFailed", "no permission on the linked scope(s) '" + ids[0].IdentityString() + "," + ids[2].String() + "' or they are invalid", []int{0, 2}},
		{"in JSON, in capitals, at the end", "FailedIdentityOperation", `Response: {"id":` + strings.ToUpper(ids[2].String()), []int{2}},
		{"nobody", "LinkedAuthorizationFailed", "something is wrong", nil},
		{"an error of the machine", "Conflict", ids[0].String(), nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			if diff := cmp.Diff(x.want, arm.Blamed(&arm.Error{Status: 409, Code: x.code, Message: x.message}, ids)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestHowLongAzureAsksToWait(t *testing.T) {
	for _, x := range []struct {
		name, header, value string
		least, most         time.Duration
	}{
		{"seconds", "Retry-After", "17", 17 * time.Second, 17 * time.Second},
		{"a date", "Retry-After", time.Now().Add(time.Minute).UTC().Format(http.TimeFormat), 50 * time.Second, time.Minute},
		{"milliseconds", "x-ms-retry-after-ms", "1500", 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"far too long", "Retry-After", "999999", time.Hour, time.Hour},
		{"nothing that can be read", "Retry-After", "soon", 0, 0},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := &manager{get: `{}`, answer: func(w http.ResponseWriter) {
				w.Header().Set(x.header, x.value)
				w.WriteHeader(http.StatusTooManyRequests)
			}}
			err := azureCloud(t, m).Update(t.Context(), machineID(), some(0, 1), nil)
			if got := arm.RetryAfter(err); !arm.Throttled(err) || got < x.least || got > x.most {
				t.Errorf("%s: %v", got, err)
			}
		})
	}
}
