// Package plan compares the federated credentials that one identity has with
// those that it should have. It is a function of values.
//
//	Make(have, want, drop)
//	    own name, as it should be                 Present
//	    another name, same tokens                 Foreign: good enough, left alone
//	    another name, same issuer and subject     Taken: Azure takes no second one
//	    no room                                   Full
//	    otherwise                                 Write
//
// Only credentials with exactly an own name are ever written or removed.
package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/federated"
)

// NamePrefix begins the names of own credentials.
const NamePrefix = "lanyard-"

// Name is the credential of a service account of a cluster. It never changes, so
// that a controller that has lost its memory finds it again, and it is nobody
// else's: neither another cluster's nor another service account's.
func Name(clusterID, namespace, serviceAccount string) string {
	// Lengths of names cannot be shifted: no part may contain a slash.
	sum := sha256.Sum256([]byte(clusterID + "/" + namespace + "/" + serviceAccount))
	return NamePrefix + hex.EncodeToString(sum[:16])
}

// An Outcome says how a wanted credential is.
type Outcome int

// Outcomes.
const (
	Write Outcome = iota // it is to be made or changed
	Present
	Foreign
	Taken
	Full
)

// A Step is about one wanted credential.
type Step struct {
	Want    federated.Credential
	Outcome Outcome
	Other   federated.Credential // Foreign and Taken: the one that is there
	Update  bool                 // Write: one of that name is there
}

// A Plan is what is to be done, in this order.
type Plan struct {
	Remove []string // own names: removals make room
	Steps  []Step   // in the order of want; changes need no room, new ones get it in order
}

// Make compares. want is in the order in which room is given away; drop are own
// names that are to go.
func Make(have, want []federated.Credential, drop []string) Plan {
	var p Plan
	rest := slices.Clone(have)
	named := func(list []federated.Credential, name string) int {
		return slices.IndexFunc(list, func(c federated.Credential) bool { return strings.EqualFold(c.Name, name) })
	}
	remove := func(name string) {
		if i := named(rest, name); i >= 0 {
			p.Remove = append(p.Remove, rest[i].Name)
			rest = slices.Delete(rest, i, i+1)
		}
	}
	for _, name := range drop {
		if named(want, name) < 0 {
			remove(name)
		}
	}
	for _, w := range want {
		s := Step{Want: w}
		other := slices.IndexFunc(rest, func(c federated.Credential) bool {
			return c.Issuer == w.Issuer && c.Subject == w.Subject && !strings.EqualFold(c.Name, w.Name)
		})
		switch {
		case other >= 0 && rest[other].Same(w):
			s.Outcome, s.Other = Foreign, rest[other]
		case other >= 0:
			s.Outcome, s.Other = Taken, rest[other]
		}
		if other >= 0 {
			remove(w.Name) // it trusts a former issuer
		} else if i := named(rest, w.Name); i >= 0 {
			s.Update = true
			if rest[i].Same(w) {
				s.Outcome = Present
			}
		}
		p.Steps = append(p.Steps, s)
	}
	room := federated.MaxPerParent - len(rest)
	for i := range p.Steps {
		if s := &p.Steps[i]; s.Outcome == Write && !s.Update {
			if room--; room < 0 {
				s.Outcome = Full
			}
		}
	}
	return p
}
