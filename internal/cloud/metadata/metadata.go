// Package metadata is the instance metadata service of the local cloud's machines: what answers at 169.254.169.254.
//
//	request
//	   1 imds.Classify         token endpoint, instance document, versions, or nothing
//	   2 imds.CheckHeaders     "Metadata: true", not forwarded; before anything is looked up
//	   3 limits                429 beyond so many requests of this machine a second, if they are on
//	   4 compute               the machine, with the identities that Resource Manager put on it; 410 while it changes
//	   5 choose                which identity is meant
//	   6 Tokens                a token for it
//	   7 imds.WriteToken
//
// A handler serves one machine. Nothing in a request can name another one: which machine asks is decided by the
// listener, as in Azure by the host that the machine runs on. Tokens are not cached.
//
// Source: https://learn.microsoft.com/azure/virtual-machines/instance-metadata-service
package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/journal"
	"github.com/lanyard-id/lanyard/internal/cloud/management/compute"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/entra"
	"github.com/lanyard-id/lanyard/internal/imds"
	"github.com/lanyard-id/lanyard/internal/token"
)

// A Server makes the metadata services of machines. DB and Tokens must be set.
type Server struct {
	DB *state.DB

	// Tokens issues a token to the managed identity with this principal id (login.Server.ManagedIdentityToken).
	Tokens func(ctx context.Context, principalID, resource string) (token.Token, error)

	// Settle brings the state up to date before it is read (management.Server.Settle); nil means that it always is.
	Settle func() error
	// Limits says whether Azure's limits per machine hold, Updates whether the token endpoint answers 410 while the
	// machine is being changed. Both are read at each request; nil means no.
	Limits, Updates func() bool

	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	limits limits
}

// Handler returns the metadata service of one machine: /subscriptions/…/virtualMachines/N or
// /subscriptions/…/virtualMachineScaleSets/S/virtualMachines/I. The machine need not exist yet; until it does, requests
// are answered 404, which clients retry. An id of another kind is a mistake of the caller, and every request says so.
func (s *Server) Handler(machineID string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "IMDS/150.870.65.1497")
		if err := s.serve(w, r, machineID); err != nil {
			s.refuse(w, r, machineID, err)
		}
	})
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, machineID string, err error) {
	var instance *instanceError
	if errors.As(err, &instance) {
		s.logger().InfoContext(r.Context(), "metadata request refused", "machine", machineID, "path", r.URL.EscapedPath(), "status", instance.status, "err", err)
		writeJSON(w, instance.status, instance)
		return
	}
	var e *imds.Error
	if !errors.As(err, &e) {
		e = &imds.Error{Status: http.StatusInternalServerError, Code: imds.CodeUnknown, Description: "Failed to retrieve token from the Active directory. For details see the log of the metadata service", Err: err}
	}
	s.logger().InfoContext(r.Context(), "metadata request refused", "machine", machineID, "path", r.URL.EscapedPath(), "err", err)
	imds.WriteError(w, e)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, machineID string) error {
	kind := imds.Classify(r.URL)
	if kind == imds.TokenEndpoint {
		return s.serveToken(w, r, machineID)
	}
	if r.Method != http.MethodGet {
		return &imds.Error{Status: http.StatusMethodNotAllowed, Code: imds.CodeInvalidRequest, Description: "only GET is allowed"}
	}
	if err := (imds.Rules{}).CheckHeaders(r.Header); err != nil {
		return err
	}
	path := strings.TrimSuffix(strings.ToLower(r.URL.Path), "/")
	switch {
	case kind == imds.Instance:
		leave, err := s.enter(machineID, instanceCategory())
		if err != nil {
			return err
		}
		defer leave()
		return s.serveInstance(w, r, machineID, path)
	case kind == imds.Other && path == "/metadata/versions":
		writeJSON(w, http.StatusOK, map[string][]string{"apiVersions": versions()})
		return nil
	}
	return &instanceError{status: http.StatusNotFound, Message: "Not found"}
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request, machineID string) error {
	q, err := imds.ParseTokenRequest(r)
	if err != nil {
		return err
	}
	leave, err := s.enter(machineID, identityCategory())
	if err != nil {
		return err
	}
	defer leave()
	m, err := s.machine(machineID)
	if err != nil {
		return err
	}
	if since := m.UpdatingSince; s.Updates != nil && s.Updates() && !since.IsZero() && s.now().Sub(since) < longestUpdate {
		return &imds.Error{Status: http.StatusGone, Code: imds.CodeUnknown, Description: "The metadata service is being updated; it is back in at most 70 seconds", Err: errors.New("an operation on the machine is in progress")}
	}
	chosen, err := choose(m.Identities, q)
	if err != nil {
		return err
	}
	t, err := s.Tokens(r.Context(), chosen.PrincipalID, q.Resource)
	var refused *entra.Error
	switch {
	case errors.As(err, &refused):
		return &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidResource, Description: fmt.Sprintf("AADSTS%d: %s", refused.Code, refused.Text), Err: err}
	case errors.Is(err, directory.ErrNotFound): // the identity was deleted and the machine still refers to it
		return &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: imds.DescriptionIdentityNotFound, Err: err}
	case err != nil:
		return err
	}
	t.Resource = q.Resource
	journal.NoteOf(r.Context()).Client = chosen.ClientID
	s.logger().InfoContext(r.Context(), "metadata token issued", "machine", machineID, "token", t)
	imds.WriteToken(w, t, s.now())
	return nil
}

// choose picks the identity that a request means: the selected one; without a selector the system-assigned one, else
// the only user-assigned one.
func choose(identities []compute.MachineIdentity, q imds.TokenRequest) (compute.MachineIdentity, error) {
	var none compute.MachineIdentity
	selected := func(i compute.MachineIdentity) bool {
		switch {
		case q.ClientID != "":
			return azure.Fold(i.ClientID) == azure.Fold(q.ClientID)
		case q.ObjectID != "":
			return azure.Fold(i.PrincipalID) == azure.Fold(q.ObjectID)
		}
		return i.ResourceID.Key() == azure.Fold(q.ResourceID)
	}
	if q.ClientID != "" || q.ObjectID != "" || q.ResourceID != "" {
		for _, i := range identities {
			if selected(i) {
				return i, nil
			}
		}
		return none, &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: imds.DescriptionIdentityNotFound,
			Err: fmt.Errorf("%d identities on the machine, none selected", len(identities))}
	}
	switch {
	case len(identities) == 0:
		return none, &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest, Description: imds.DescriptionIdentityNotFound,
			Err: errors.New("no identity on the machine")}
	case identities[0].System || len(identities) == 1:
		return identities[0], nil
	}
	return none, &imds.Error{Status: http.StatusBadRequest, Code: imds.CodeInvalidRequest,
		Description: "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"}
}

// machine reads the machine that this listener belongs to.
func (s *Server) machine(machineID string) (m compute.Machine, err error) {
	id, err := azure.ParseResourceID(machineID)
	if err != nil {
		return m, err
	}
	if s.Settle != nil {
		if err := s.Settle(); err != nil {
			return m, err
		}
	}
	var found bool
	err = s.DB.View(func(tx *state.Tx) (err error) { m, found, err = compute.FindMachine(tx, id); return err })
	if err == nil && !found {
		err = &imds.Error{Status: http.StatusNotFound, Code: imds.CodeInvalidRequest, Description: "The machine of this metadata service does not exist", Err: fmt.Errorf("machine %s", machineID)}
	}
	return m, err
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(body) // the client is gone: nobody is left to tell
}

func (s *Server) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Server) logger() *slog.Logger {
	if s.Logger != nil {
		return s.Logger
	}
	return slog.Default()
}
