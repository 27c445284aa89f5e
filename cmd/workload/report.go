package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// A report is the one line that the program prints.
type report struct {
	Door              string     `json:"door"` // "1 IMDS" or "2 Entra direct"
	OK                bool       `json:"ok"`   // whether the secret was read
	Resource          string     `json:"resource"`
	FirstToken        *time.Time `json:"firstToken,omitempty"`        // the instant at which it was there
	FirstTokenMillis  float64    `json:"firstTokenMillis,omitempty"`  // since the program started
	SecondTokenMillis float64    `json:"secondTokenMillis,omitempty"` // how long asking again took
	Identity          *identity  `json:"identity,omitempty"`
	Secret            string     `json:"secret,omitempty"` // its length and the start of its SHA-256
	Value             string     `json:"value,omitempty"`  // only with --print-secret
	Status            int        `json:"status,omitempty"` // of the refusal, if it came by HTTP
	Error             string     `json:"error,omitempty"`

	started time.Time
}

// identity is who a token speaks for.
type identity struct {
	AppID      string `json:"appid,omitempty"`
	ObjectID   string `json:"oid,omitempty"`
	TenantID   string `json:"tid,omitempty"`
	ResourceID string `json:"xms_mirid,omitempty"`
}

// first notes the first token.
func (r *report) first(token string) {
	now := time.Now()
	r.FirstToken = &now
	r.FirstTokenMillis = millis(now.Sub(r.started))
	r.Identity = whoIs(token)
}

// read notes the secret.
func (r *report) read(value string, show bool) {
	sum := sha256.Sum256([]byte(value))
	r.Secret = fmt.Sprintf("%d bytes, sha256 %s", len(value), hex.EncodeToString(sum[:4]))
	if show {
		r.Value = value
	}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// whoIs reads the claims of an access token; nil if it is no JWT.
func whoIs(token string) *identity {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil
	}
	var claims struct {
		identity
		AuthorizedParty string `json:"azp"` // what v2 tokens call appid
	}
	if json.Unmarshal(payload, &claims) != nil {
		return nil
	}
	if claims.AppID == "" {
		claims.AppID = claims.AuthorizedParty
	}
	return &claims.identity
}

// A refusal is an answer by HTTP that is not what was asked for.
type refusal struct {
	who    string
	status int
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("%s answered %d: %s", r.who, r.status, r.text) }
