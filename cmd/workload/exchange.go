package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// An exchanged is what exchange prints of one exchange.
type exchanged struct {
	At       time.Time  `json:"at"` // when it was sent
	Millis   float64    `json:"millis"`
	Status   int        `json:"status"`             // 0 means that there was no answer
	KeyID    string     `json:"kid,omitempty"`      // what signed the token of the service account
	Issued   *time.Time `json:"issued,omitempty"`   // its iat
	Ends     *time.Time `json:"ends,omitempty"`     // its exp
	Identity *identity  `json:"identity,omitempty"` // whom the access token speaks for
	Error    string     `json:"error,omitempty"`
}

// exchange gives Entra the token of its service account again and again, as a
// program does that is started each time: the file is read anew, nothing is
// cached. It takes the variables that the webhook gives to a container.
func exchange(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("workload exchange", flag.ContinueOnError)
	flags.SetOutput(stderr)
	scope := flags.String("scope", "https://vault.azure.net/.default", "what the access token is for")
	pause := flags.Duration("pause", 100*time.Millisecond, "time between an answer and the next request")
	timeout := flags.Duration("timeout", 10*time.Second, "how long to wait for an answer")
	count := flags.Int("count", 0, "how often to ask; 0 means until a signal comes")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	tenant, authority := os.Getenv("AZURE_TENANT_ID"), os.Getenv("AZURE_AUTHORITY_HOST")
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {os.Getenv("AZURE_CLIENT_ID")}, "scope": {*scope},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	file := os.Getenv("AZURE_FEDERATED_TOKEN_FILE")
	if tenant == "" || authority == "" || file == "" || form.Get("client_id") == "" || flags.NArg() > 0 || *timeout <= 0 {
		fmt.Fprintf(stderr, "workload exchange: AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_AUTHORITY_HOST and AZURE_FEDERATED_TOKEN_FILE must be set, --timeout positive, and every setting is a flag\n%s", usage)
		return 2
	}
	endpoint, err := url.JoinPath(authority, tenant, "oauth2/v2.0/token")
	if err != nil {
		fmt.Fprintf(stderr, "workload exchange: AZURE_AUTHORITY_HOST: %v\n", err)
		return 2
	}
	client := &http.Client{Timeout: *timeout}
	defer client.CloseIdleConnections()
	out := json.NewEncoder(stdout)
	for n := 1; ctx.Err() == nil; n++ {
		// A signal does not cut off what is under way: that would look like a failure.
		if err := out.Encode(exchangeOnce(context.WithoutCancel(ctx), client, endpoint, file, form)); err != nil {
			fmt.Fprintln(stderr, "workload:", err)
			return 1
		}
		if n == *count {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(*pause):
		}
	}
	return 0
}

func exchangeOnce(ctx context.Context, client *http.Client, endpoint, file string, form url.Values) (e exchanged) {
	e.At = time.Now()
	defer func() { e.Millis = millis(time.Since(e.At)) }()
	raw, err := os.ReadFile(file)
	if err != nil {
		e.Error = err.Error()
		return e
	}
	e.KeyID, e.Issued, e.Ends = signedBy(string(raw))
	form.Set("client_assertion", string(raw))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
	if err != nil {
		e.Error = err.Error()
		return e
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := client.Do(req)
	if err != nil {
		e.Error = err.Error()
		return e
	}
	defer res.Body.Close()
	e.Status = res.StatusCode
	var answer struct {
		AccessToken string `json:"access_token"`
		Description string `json:"error_description"`
	}
	err = json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer)
	switch {
	case err != nil:
		err = errors.New("the answer is no JSON") // it may hold a token: not shown
	case res.StatusCode != http.StatusOK:
		err = errors.New(answer.Description)
	default:
		if e.Identity = whoIs(answer.AccessToken); e.Identity == nil {
			err = errors.New("the answer has no access_token")
		}
	}
	if err != nil {
		e.Error = err.Error()
	}
	return e
}

// signedBy is the key that a token names in its head, and its times. They are
// zero for what is no JWT.
func signedBy(token string) (kid string, issued, ends *time.Time) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", nil, nil
	}
	var head struct {
		KeyID string `json:"kid"`
	}
	var claims struct {
		Issued int64 `json:"iat"`
		Ends   int64 `json:"exp"`
	}
	for i, v := range []any{&head, &claims} {
		text, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil || json.Unmarshal(text, v) != nil {
			return "", nil, nil
		}
	}
	at := func(seconds int64) *time.Time { return new(time.Unix(seconds, 0).UTC()) }
	return head.KeyID, at(claims.Issued), at(claims.Ends)
}
