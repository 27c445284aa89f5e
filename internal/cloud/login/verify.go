package login

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/directory"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
	"github.com/lanyard-id/lanyard/internal/oidc"
)

// Why Verify refuses a token. Each host says it in its own words.
var (
	ErrTokenMissing  = errors.New("no token")
	ErrTokenInvalid  = errors.New("token is not one of ours, or was changed")
	ErrTokenExpired  = errors.New("token has expired")
	ErrTokenNotYet   = errors.New("token is not valid yet")
	ErrTokenAudience = errors.New("token is for another audience")
	ErrTokenIssuer   = errors.New("token is from another issuer")
)

// A TokenError is what Verify returns: Kind is one of the ErrToken values,
// Found what the token has instead of the right audience or issuer. Neither
// holds any part of the token's signature.
type TokenError struct {
	Kind  error
	Found string
	Err   error // the cause for the log; nil if Kind says it all
}

func (e *TokenError) Error() string {
	s := e.Kind.Error()
	if e.Found != "" {
		s += fmt.Sprintf(" (%.200q)", e.Found)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is find Kind and the cause.
func (e *TokenError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Claims are what a verified access token says about its bearer.
type Claims struct {
	TenantID     string
	ObjectID     string // the principal that roles are assigned to
	AppID        string
	Audience     string
	IDType       string // "app"
	Expiry       time.Time
	MIResourceID string // ARM id of a managed identity's resource, else ""
}

// Verify checks an access token of this service: the signature by one of
// its keys, the issuer (the home tenant, in which all resources are), the
// audience (byte for byte one of audiences), and the time, with five minutes
// for clocks that differ. bearer is the token alone, without "Bearer ".
// Refusals are *TokenError; any other error means the state cannot be read.
func (s *Server) Verify(ctx context.Context, bearer string, audiences ...string) (Claims, error) {
	var none Claims
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if bearer == "" {
		return none, &TokenError{Kind: ErrTokenMissing}
	}
	t, err := oidc.Parse(bearer)
	if err != nil {
		return none, &TokenError{Kind: ErrTokenInvalid, Err: err}
	}
	// A token of another cloud is worth saying so, although it stays
	// unverified: it is the most common mix-up.
	home, err := s.homeTenant()
	if err != nil {
		return none, err
	}
	iss, _ := t.Claims.String("iss")
	pub, known := s.keys.Load().find(t.KeyID())
	if !known && iss != issuerV1(home.ID) && iss != issuerV2(home.ID) {
		return none, &TokenError{Kind: ErrTokenIssuer, Found: iss}
	}
	if !known {
		return none, &TokenError{Kind: ErrTokenInvalid, Err: errors.New("signed by an unknown key")}
	}
	if err := t.Verify(oidc.RS256, pub); err != nil {
		return none, &TokenError{Kind: ErrTokenInvalid, Err: err}
	}
	ver, _ := t.Claims.String("ver")
	if want := map[string]string{"1.0": issuerV1(home.ID), "2.0": issuerV2(home.ID)}[ver]; want == "" || iss != want {
		return none, &TokenError{Kind: ErrTokenIssuer, Found: iss}
	}
	c, err := s.readClaims(t, home)
	if err != nil {
		return none, err
	}
	if !slices.Contains(audiences, c.Audience) {
		return none, &TokenError{Kind: ErrTokenAudience, Found: c.Audience}
	}
	return c, nil
}

// readClaims reads a token whose signature and issuer are right.
func (s *Server) readClaims(t *oidc.Token, home directory.Tenant) (Claims, error) {
	invalid := func(why string) error { return &TokenError{Kind: ErrTokenInvalid, Err: errors.New(why)} }
	aud, ok := t.Claims.Audience()
	if !ok || len(aud) != 1 {
		return Claims{}, invalid("no single audience")
	}
	exp, ok, err := t.Claims.Time("exp")
	if err != nil || !ok {
		return Claims{}, invalid("no expiry")
	}
	nbf, ok, err := t.Claims.Time("nbf")
	if err != nil || !ok {
		return Claims{}, invalid("no start of validity")
	}
	now := s.now()
	if !now.Before(time.Unix(exp, 0).Add(clockSkew)) {
		return Claims{}, &TokenError{Kind: ErrTokenExpired}
	}
	if now.Before(time.Unix(nbf, 0).Add(-clockSkew)) {
		return Claims{}, &TokenError{Kind: ErrTokenNotYet}
	}
	c := Claims{Audience: aud[0], Expiry: time.Unix(exp, 0)}
	c.TenantID, _ = t.Claims.String("tid")
	c.ObjectID, _ = t.Claims.String("oid")
	c.IDType, _ = t.Claims.String("idtyp")
	c.MIResourceID, _ = t.Claims.String("xms_mirid")
	if c.AppID, ok = t.Claims.String("appid"); !ok {
		c.AppID, _ = t.Claims.String("azp")
	}
	if c.TenantID != home.ID || c.ObjectID == "" || c.AppID == "" {
		return Claims{}, invalid("no tenant, object or application id")
	}
	return c, nil
}

func (s *Server) homeTenant() (t directory.Tenant, err error) {
	err = s.db.View(func(tx *state.Tx) error {
		t, err = directory.HomeTenant(tx)
		return err
	})
	return t, err
}
