package nmi

import (
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/lanyard-id/lanyard/internal/token"
)

// The answers are those of Pod Identity v1, every value a string, with the two
// members that the metadata service has and v1 left out: client_id and
// ext_expires_in. Several tokens (auxiliaryTenantIDs) are an array, as in v1.

// writeTokens answers 200. expires is what all tokens are said to end at.
func (s *Server) writeTokens(w http.ResponseWriter, tokens []token.Token, expires, now time.Time) {
	b, ok := s.buffers.Get().(*[]byte)
	if !ok {
		b = new([]byte)
	}
	body := (*b)[:0]
	if len(tokens) == 1 {
		body = appendToken(body, tokens[0], expires, now)
	} else {
		for i, t := range tokens {
			body = append(body, "[,"[min(i, 1)])
			body = appendToken(body, t, expires, now)
		}
		body = append(body, ']')
	}
	body = append(body, '\n')
	send(w, body)
	*b = body
	s.buffers.Put(b)
}

// writeHostToken answers a driver 200 with {"token":{…},"clientid":"…"}.
func writeHostToken(w http.ResponseWriter, t token.Token, clientID string, expires, now time.Time) {
	body := append(make([]byte, 0, 4096), `{"token":`...)
	body = appendToken(body, t, expires, now)
	body = append(body, `,"clientid":`...)
	body = appendString(body, clientID)
	send(w, append(body, "}\n"...))
}

// Shared, so that a request does not allocate them; net/http only reads.
var (
	jsonType = []string{"application/json; charset=utf-8"}
	nosniff  = []string{"nosniff"}
	noStore  = []string{"no-store"} // RFC 6749 section 5.1
)

func send(w http.ResponseWriter, body []byte) {
	h := w.Header()
	h["Content-Type"], h["X-Content-Type-Options"], h["Cache-Control"] = jsonType, nosniff, noStore
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(body) // the client is gone: nobody is left to tell
}

func appendToken(b []byte, t token.Token, expires, now time.Time) []byte {
	left := max(0, int64(expires.Sub(now)/time.Second))
	from := t.NotBefore
	if from.IsZero() {
		from = now
	}
	b = append(b, `{"access_token":`...)
	b = appendString(b, t.AccessToken)
	b = append(b, `,"client_id":`...)
	b = appendString(b, t.ClientID)
	b = append(b, `,"refresh_token":"","expires_in":"`...)
	b = strconv.AppendInt(b, left, 10)
	b = append(b, `","ext_expires_in":"`...)
	b = strconv.AppendInt(b, left, 10)
	b = append(b, `","expires_on":"`...)
	b = strconv.AppendInt(b, expires.Unix(), 10)
	b = append(b, `","not_before":"`...)
	b = strconv.AppendInt(b, from.Unix(), 10)
	b = append(b, `","resource":`...)
	b = appendString(b, t.Resource)
	return append(b, `,"token_type":"Bearer"}`...)
}

// verbatim are the bytes that stand for themselves in JSON. A token has more
// than a thousand: one look each is what this costs.
var verbatim = func() (t [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// appendString appends s as JSON. Almost every string needs no escape.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if !verbatim[s[i]] {
			text, _ := json.Marshal(s) // a string has a JSON form
			return append(b, text...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
