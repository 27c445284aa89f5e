package standin

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Names of what the stand-in for the cloud holds. Every machine of the group
// exists.
const (
	Subscription = "22222222-2222-4222-8222-222222222222"
	Group        = "bench"
)

// Paths of the benchmark's own: StatsPath tells what was asked so far,
// LatencyPath sets the latency of changes to one machine.
const (
	HangPath    = "/bench/hang"
	StatsPath   = "/bench/stats"
	LatencyPath = "/bench/latency"
)

// Stats are what the cloud was asked for.
type Stats struct {
	Tokens     int            `json:"tokens"`
	Reads      int            `json:"reads"`      // GET of a machine
	Changes    int            `json:"changes"`    // PATCH of a machine
	Polls      int            `json:"polls"`      // GET of an operation
	Conflicts  int            `json:"conflicts"`  // PATCH of a machine that was being changed
	UnderWay   map[string]int `json:"underWay"`   // changes of each machine that have not ended
	Identities map[string]int `json:"identities"` // how many each machine has
}

// A cloud is the stand-in's state.
type cloud struct {
	config Config

	mu         sync.Mutex
	machines   map[string]*machine // by name
	operations map[string]*operation
	latency    map[string]time.Duration
	stats      Stats
}

type machine struct {
	identities map[string]string // resource id by its lower-case form
	changing   bool
}

type operation struct{ done bool }

func newCloud(c Config) http.Handler {
	s := &cloud{config: c, machines: map[string]*machine{}, operations: map[string]*operation{}, latency: map[string]time.Duration{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{tenant}/oauth2/token", s.token)
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", s.token)
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /common/discovery/instance", s.instance)
	const at = "/subscriptions/{sub}/{groups}/{group}/providers/Microsoft.Compute/{kind}/{name}"
	mux.HandleFunc("GET "+at, s.read)
	mux.HandleFunc("PATCH "+at, s.change)
	mux.HandleFunc("GET /operations/{id}", s.poll)
	mux.HandleFunc("GET "+StatsPath, s.tell)
	mux.HandleFunc("POST "+LatencyPath, s.setLatency)
	return mux
}

func (s *cloud) token(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "invalid_request", "error_description": "AADSTS900144"})
		return
	}
	s.mu.Lock()
	s.stats.Tokens++
	s.mu.Unlock()
	if !wait(r.Context(), s.config.Latency) {
		return
	}
	resource := r.PostForm.Get("resource")
	if resource == "" {
		resource = strings.TrimSuffix(r.PostForm.Get("scope"), "/.default")
	}
	now := time.Now()
	answer := map[string]any{
		"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599,
		"access_token": accessToken(number(r.PostForm.Get("client_id")), resource, now),
	}
	if !strings.Contains(r.URL.Path, "/v2.0/") { // version 1 writes numbers as text
		maps.Copy(answer, map[string]any{
			"expires_in": "3599", "ext_expires_in": "3599", "resource": resource,
			"expires_on": strconv.FormatInt(now.Add(time.Hour).Unix(), 10), "not_before": strconv.FormatInt(now.Unix(), 10),
		})
	}
	writeJSON(w, http.StatusOK, answer)
}

func (s *cloud) discovery(w http.ResponseWriter, r *http.Request) {
	base := s.config.BaseURL + "/" + r.PathValue("tenant")
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer": base + "/v2.0", "token_endpoint": base + "/oauth2/v2.0/token", "authorization_endpoint": base + "/oauth2/v2.0/authorize",
		"jwks_uri": base + "/discovery/v2.0/keys",
	})
}

func (s *cloud) instance(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"tenant_discovery_endpoint": s.config.BaseURL + "/" + Tenant + "/v2.0/.well-known/openid-configuration", "metadata": []any{}})
}

// of returns the machine; the caller holds mu.
func (s *cloud) of(name string) *machine {
	m := s.machines[name]
	if m == nil {
		m = &machine{identities: map[string]string{}}
		s.machines[name] = m
	}
	return m
}

// describe is the machine as ARM shows it; the caller holds mu.
func (s *cloud) describe(r *http.Request, m *machine) map[string]any {
	state := "Succeeded"
	if m.changing {
		state = "Updating"
	}
	identity := map[string]any{"type": "None"}
	if len(m.identities) > 0 {
		users := map[string]any{}
		for _, id := range m.identities {
			users[id] = map[string]string{"clientId": ClientID(number(id)), "principalId": ObjectID(number(id))}
		}
		identity = map[string]any{"type": "UserAssigned", "userAssignedIdentities": users}
	}
	return map[string]any{
		"id": r.URL.Path, "name": r.PathValue("name"), "location": "eastus", "type": "Microsoft.Compute/" + r.PathValue("kind"),
		"properties": map[string]any{"provisioningState": state}, "identity": identity,
	}
}

func (s *cloud) read(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.stats.Reads++
	body := s.describe(r, s.of(r.PathValue("name")))
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, body)
}

// change begins an asynchronous change of a machine's identities.
func (s *cloud) change(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Identity struct {
			Type  string                     `json:"type"`
			Users map[string]json.RawMessage `json:"userAssignedIdentities"`
		} `json:"identity"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<20)).Decode(&body); err != nil {
		writeJSON(w, http.StatusBadRequest, armError("InvalidRequestContent", err.Error()))
		return
	}
	name := r.PathValue("name")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Changes++
	m := s.of(name)
	if m.changing {
		s.stats.Conflicts++
		writeJSON(w, http.StatusConflict, armError("OperationNotAllowed", "another operation is under way"))
		return
	}
	m.changing = true
	id := fmt.Sprintf("%s-%d", name, s.stats.Changes)
	op := &operation{}
	s.operations[id] = op
	after := s.config.ARMDelay
	if d, ok := s.latency[name]; ok {
		after = d
	}
	time.AfterFunc(after, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		m.apply(body.Identity.Type, body.Identity.Users)
		m.changing, op.done = false, true
	})
	w.Header().Set("Azure-AsyncOperation", s.config.BaseURL+"/operations/"+id)
	writeJSON(w, http.StatusOK, s.describe(r, m)) // as compute answers a PATCH: 200, and it goes on
}

func (m *machine) apply(kind string, users map[string]json.RawMessage) {
	if !strings.Contains(kind, "UserAssigned") {
		clear(m.identities)
	}
	for id, v := range users {
		if string(v) == "null" {
			delete(m.identities, strings.ToLower(id))
		} else {
			m.identities[strings.ToLower(id)] = id
		}
	}
}

func armError(code, message string) map[string]any {
	return map[string]any{"error": map[string]string{"code": code, "message": message}}
}

func (s *cloud) poll(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Polls++
	op := s.operations[r.PathValue("id")]
	if op == nil {
		writeJSON(w, http.StatusNotFound, armError("NotFound", "no such operation"))
		return
	}
	status := "InProgress"
	if op.done {
		status = "Succeeded"
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": status})
}

func (s *cloud) tell(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := s.stats
	stats.UnderWay, stats.Identities = map[string]int{}, map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(s.machines)) {
		m := s.machines[name]
		stats.Identities[name] = len(m.identities)
		if m.changing {
			stats.UnderWay[name] = 1
		}
	}
	writeJSON(w, http.StatusOK, stats)
}

func (s *cloud) setLatency(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.FormValue("latency"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency[r.FormValue("machine")] = d
	writeJSON(w, http.StatusOK, map[string]string{})
}
