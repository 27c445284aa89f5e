package token_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/token"
)

const secret = "eyJ0.very.secret"

func TestATokenNeverShowsItsSecretByAccident(t *testing.T) {
	tok := token.Token{AccessToken: secret, ExpiresOn: time.Unix(1_900_000_000, 0), Resource: "https://vault.azure.net", ClientID: "c1"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		for _, v := range []any{tok, &tok, struct{ T token.Token }{tok}, []token.Token{tok}} {
			got := fmt.Sprintf(verb, v)
			if strings.Contains(got, secret) || strings.Contains(got, fmt.Sprintf("%x", secret)) {
				t.Errorf("Sprintf(%q, %T) shows the secret: %s", verb, v, got)
			}
		}
	}
	var text, js bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("m", "token", tok)
	slog.New(slog.NewJSONHandler(&js, nil)).Info("m", "token", tok)
	for _, got := range []string{text.String(), js.String()} {
		if strings.Contains(got, secret) {
			t.Errorf("the log shows the secret: %s", got)
		}
		if !strings.Contains(got, "https://vault.azure.net") {
			t.Errorf("the log does not say which resource: %s", got)
		}
	}
}

func TestValid(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, c := range []struct {
		name string
		tok  token.Token
		want bool
	}{
		{"a token inside its lifetime is valid", token.Token{AccessToken: "x", NotBefore: now.Add(-1), ExpiresOn: now.Add(1)}, true},
		{"a token is valid at the instant it starts", token.Token{AccessToken: "x", NotBefore: now, ExpiresOn: now.Add(1)}, true},
		{"a token is not valid at the instant it expires", token.Token{AccessToken: "x", ExpiresOn: now}, false},
		{"a token is not valid before it starts", token.Token{AccessToken: "x", NotBefore: now.Add(1), ExpiresOn: now.Add(2)}, false},
		{"the zero token is not valid", token.Token{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.tok.Valid(now); got != c.want {
				t.Errorf("Valid = %v, want %v", got, c.want)
			}
		})
	}
}
