// Package token defines what an access token is to every component: the value,
// the question that yields it, the one interface by which they ask, and the
// Cache that asks an upstream no more often than needed.
//
// A Token never shows its secret by accident: slog and fmt print it redacted.
package token

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// A Token is an access token as the issuer answered.
type Token struct {
	AccessToken string    // the secret itself
	ExpiresOn   time.Time // the token is worthless from here on
	NotBefore   time.Time // zero: valid at once
	Resource    string    // echoes the resource that was asked for
	ClientID    string    // the identity that the token speaks for; empty if the issuer did not say
}

// A Request asks for a token. At most one of ClientID, ResourceID and ObjectID
// is set; with none the issuer's default identity answers.
type Request struct {
	ClientID   string // application (client) id of the identity
	ResourceID string // ARM resource id of the identity
	ObjectID   string // object (principal) id of the identity
	Resource   string // the audience, verbatim as the caller wrote it
}

// A Source yields tokens. It is safe for concurrent use, and it stops waiting
// when the context ends. Errors that a caller may see are *imds.Error values.
type Source interface {
	Token(ctx context.Context, r Request) (Token, error)
}

// The Func type makes a function a Source.
type Func func(ctx context.Context, r Request) (Token, error)

// Token calls f.
func (f Func) Token(ctx context.Context, r Request) (Token, error) { return f(ctx, r) }

// Valid reports whether t can be used at the instant now.
func (t Token) Valid(now time.Time) bool {
	return t.AccessToken != "" && !now.Before(t.NotBefore) && now.Before(t.ExpiresOn)
}

// String describes t without its secret.
func (t Token) String() string {
	return fmt.Sprintf("token for %q of client %q until %s", t.Resource, t.ClientID, t.ExpiresOn.UTC().Format(time.RFC3339))
}

// Format makes every fmt verb print the redacted form: %+v and %#v would
// otherwise walk the fields.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue describes t without its secret.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("resource", t.Resource),
		slog.String("clientID", t.ClientID),
		slog.Time("expiresOn", t.ExpiresOn),
	)
}
