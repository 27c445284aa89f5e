package entra

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"
)

// maxAssertion bounds a federated token; those of Kubernetes have some 1,500 bytes.
const maxAssertion = 64 << 10

// ErrAssertion is wrapped, beside ErrUnusable, by errors that say what is wrong
// with a federated token: nothing was sent.
var ErrAssertion = errors.New("the federated token cannot be used")

// An Assertion is a token of another issuer that Entra takes as the proof of a
// federated credential, such as a service account's (RFC 7523, section 2.2). It
// is a Credential:
//
//	client.Token(ctx, app, entra.Assertion(token), resource)
type Assertion string

// Form returns the assertion; it is the same for every client and endpoint.
func (a Assertion) Form(_, _ string, _ time.Time) (url.Values, error) {
	token := strings.TrimSpace(string(a))
	if err := plausible(token); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAssertion, err)
	}
	return url.Values{"client_assertion": {token}, "client_assertion_type": {AssertionTypeJWT}}, nil
}

// String shows nothing of the token.
func (a Assertion) String() string { return "federated token" }

// Format makes every fmt verb print the redacted form.
func (a Assertion) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.String()) }

// LogValue shows nothing of the token.
func (a Assertion) LogValue() slog.Value { return slog.StringValue(a.String()) }

// MarshalText shows nothing of the token.
func (a Assertion) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// An AssertionFile is the path of a file that holds an Assertion, such as
// AZURE_FEDERATED_TOKEN_FILE. It is read anew for each request: the kubelet
// replaces it long before the token ends.
type AssertionFile string

// Form returns the assertion that the file holds now.
func (f AssertionFile) Form(clientID, audience string, now time.Time) (url.Values, error) {
	a, err := f.Read()
	if err != nil {
		return nil, err
	}
	form, err := a.Form(clientID, audience, now)
	if err != nil {
		return nil, fmt.Errorf("the file %s: %w", string(f), err)
	}
	return form, nil
}

// Read reads the file. Errors wrap ErrAssertion.
func (f AssertionFile) Read() (Assertion, error) {
	if f == "" {
		return "", fmt.Errorf("%w: no file is named: set AZURE_FEDERATED_TOKEN_FILE", ErrAssertion)
	}
	file, err := os.Open(string(f))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrAssertion, err)
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxAssertion+1))
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrAssertion, err)
	}
	return Assertion(b), nil
}

// plausible tells a token from what is there by mistake; whether it is a good
// one is for Entra to say.
func plausible(token string) error {
	switch {
	case token == "":
		return errors.New("it is empty")
	case len(token) > maxAssertion:
		return errors.New("it is longer than 64 KiB")
	case strings.Count(token, ".") != 2 || strings.ContainsFunc(token, notBase64URL):
		return errors.New("it is not a signed JWT (three parts of base64url between dots)")
	}
	return nil
}

func notBase64URL(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '.':
		return false
	}
	return true
}
