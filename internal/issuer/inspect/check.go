// Package inspect looks at an issuer as Entra does, from its public URL, and
// compares what is there with what a cluster's API servers sign with.
//
//	Fetcher.Fetch   https://ISSUER/ ──> documents, and what Entra stumbles over
//	Check.Run       the same, beside every API server ──> Report
//
// A Finding says what is wrong and what to do, and has a code for programs.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/issuer"
)

// Severities of a Finding.
const (
	Wrong = "error"   // Entra refuses tokens
	Odd   = "warning" // it works, or part of it does
)

// A Finding is one thing that is not as it should be.
type Finding struct {
	Severity string `json:"severity"` // Wrong or Odd
	Code     string `json:"code"`     // for programs: "trailing-slash", "missing-key", ...
	Text     string `json:"text"`
	Fix      string `json:"fix,omitempty"` // what to do
}

// Findings are what a check found, in the order in which Entra would.
type Findings []Finding

func (f *Findings) add(severity, code, text, fix string) {
	*f = append(*f, Finding{severity, code, text, fix})
}

// Err is nil if Entra would accept tokens.
func (f Findings) Err() error {
	var errs []error
	for _, x := range f {
		if x.Severity != Wrong {
			continue
		}
		text := x.Text
		if x.Fix != "" {
			text += " (" + x.Fix + ")"
		}
		errs = append(errs, errors.New(text))
	}
	return errors.Join(errs...)
}

// A Report is the result of Check.
type Report struct {
	Issuer    string   `json:"issuer"`
	OK        bool     `json:"ok"`
	Published []string `json:"published"`         // ids of the keys at the issuer's URL
	Signing   []string `json:"signing,omitempty"` // ids of the keys that API servers sign with
	Accepted  []string `json:"accepted,omitempty"`
	Findings  Findings `json:"findings"`
}

// Check compares what an issuer publishes with what a cluster signs with.
type Check struct {
	Fetcher Fetcher
	// Issuer is the URL to ask; empty means the cluster's.
	Issuer string
	// Observe asks the cluster's API servers: Cluster.Observe. nil means that only
	// the documents are looked at.
	Observe func(ctx context.Context) ([]issuer.APIServer, error)
	// Keys must be published: those of key files. May be empty.
	Keys []issuer.Key
}

// Run checks. The error is that the check itself was not possible.
func (c Check) Run(ctx context.Context) (Report, error) {
	r := Report{Issuer: c.Issuer, Findings: Findings{}, Published: []string{}}
	var servers []issuer.APIServer
	if c.Observe != nil {
		var err error
		if servers, err = c.Observe(ctx); err != nil {
			return r, err
		}
		known := slices.DeleteFunc(slices.Clone(servers), func(s issuer.APIServer) bool { return s.Err != nil })
		if len(known) == 0 {
			return r, fmt.Errorf("no API server answers: %w", errors.Join(failures(servers)...))
		}
		for _, err := range failures(servers) {
			r.Findings.add(Odd, "api-server-away", err.Error(), "name the addresses that can be reached from here with --api-server")
		}
		servers = known
		if r.Issuer == "" {
			r.Issuer = servers[0].Issuer
		}
	}
	public, found := c.Fetcher.Fetch(ctx, r.Issuer)
	r.Published = issuer.KeyIDs(public.Keys)
	fetched := len(public.Keys) > 0
	for _, s := range servers {
		r.Findings = append(r.Findings, compareServer(r.Issuer, s)...)
		if !slices.Contains(r.Signing, s.Signer) {
			r.Signing = append(r.Signing, s.Signer)
		}
		for _, k := range s.Keys {
			if !slices.Contains(r.Accepted, k.ID) {
				r.Accepted = append(r.Accepted, k.ID)
			}
		}
	}
	r.Findings = append(r.Findings, found...)
	if fetched {
		r.Findings = append(r.Findings, c.compareKeys(public.Keys, servers)...)
	}
	r.OK = r.Findings.Err() == nil
	return r, nil
}

func failures(servers []issuer.APIServer) []error {
	var errs []error
	for _, s := range servers {
		if s.Err != nil {
			errs = append(errs, fmt.Errorf("API server %s: %w", s.URL, s.Err))
		}
	}
	return errs
}

// compareServer says where an API server differs from the issuer asked for.
func compareServer(want string, s issuer.APIServer) (found Findings) {
	switch {
	case s.Issuer == want:
	case strings.TrimSuffix(s.Issuer, "/") == strings.TrimSuffix(want, "/"):
		found.add(Wrong, "trailing-slash", fmt.Sprintf("tokens of API server %s have the issuer %q, not %q", s.URL, s.Issuer, want),
			fmt.Sprintf("federated credentials must name %q: issuers are compared byte for byte", s.Issuer))
	default:
		found.add(Wrong, "issuer-mismatch", fmt.Sprintf("tokens of API server %s have the issuer %q, not %q", s.URL, s.Issuer, want),
			"check the issuer of this cluster, or set --service-account-issuer")
	}
	return found
}

func (c Check) compareKeys(published []issuer.Key, servers []issuer.APIServer) (found Findings) {
	const fix = "publish the cluster's keys: lanyard issuer publish"
	byID := map[string]issuer.Key{}
	for _, k := range published[:min(len(published), issuer.MaxKeys)] {
		if _, twice := byID[k.ID]; !twice {
			byID[k.ID] = k
		}
	}
	accepted := map[string]bool{}
	for _, s := range servers {
		if _, there := byID[s.Signer]; !there {
			found.add(Wrong, "missing-key", fmt.Sprintf("API server %s signs with the key %s, which is not published: Entra refuses its tokens (AADSTS7000272)", s.URL, s.Signer), fix)
		}
		for _, k := range s.Keys {
			found = append(found, compareKey(byID, k, k.ID == s.Signer, accepted[k.ID])...)
			accepted[k.ID] = true
		}
	}
	for _, k := range c.Keys {
		found = append(found, compareKey(byID, k, false, accepted[k.ID])...)
		if _, there := byID[k.ID]; !there && !accepted[k.ID] {
			found[len(found)-1].Severity, found[len(found)-1].Code = Wrong, "missing-key" // these files must be published
		}
		accepted[k.ID] = true
	}
	if len(accepted) == 0 {
		return found
	}
	for _, k := range published {
		if !accepted[k.ID] {
			found.add(Odd, "extra-key", fmt.Sprintf("the key %s is published, and no API server accepts it: whoever has it can make tokens that Entra accepts", k.ID),
				"if no rotation is under way and no token of it is in use: lanyard issuer publish --remove-keys")
		}
	}
	return found
}

// compareKey compares one key with what is published under its id.
func compareKey(byID map[string]issuer.Key, k issuer.Key, signs, again bool) (found Findings) {
	if again {
		return nil
	}
	p, there := byID[k.ID]
	switch {
	case signs && k.UsableByEntra() != nil:
		found.add(Wrong, "signing-algorithm", k.UsableByEntra().Error(), "rotate to an RSA key: lanyard issuer rotate")
	case there && !p.Equal(k):
		found.add(Wrong, "wrong-key", fmt.Sprintf("another key than the cluster's is published under the id %s: Entra refuses its tokens, and somebody else can make them", k.ID), "publish with: lanyard issuer publish --force")
	case !there && !signs:
		found.add(Odd, "unpublished-key", fmt.Sprintf("the key %s is accepted by the cluster and not published: tokens that it signed are refused by Entra", k.ID), "publish the cluster's keys: lanyard issuer publish")
	}
	return found
}
