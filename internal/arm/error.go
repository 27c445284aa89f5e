package arm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// An Error is a refusal by Azure.
type Error struct {
	Status     int           // HTTP status
	Code       string        // Azure's code, for example LinkedAuthorizationFailed
	Message    string        // Azure's message
	RetryAfter time.Duration // zero if Azure does not say
	Err        error         // the cause; may be nil
}

func (e *Error) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Status, e.Code, e.Message)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// AsError turns the errors of Azure's SDK into an Error, whose text is one
// line; others stay what they are.
func AsError(err error) error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return err
	}
	var auth *azidentity.AuthenticationFailedError
	if errors.As(err, &auth) {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return &Error{Status: http.StatusUnauthorized, Code: "AuthenticationFailed", Message: text + describe(auth.RawResponse), Err: err}
	}
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		return err
	}
	e := &Error{Status: r.StatusCode, Code: r.ErrorCode, Err: err}
	if r.RawResponse != nil {
		e.RetryAfter = wait(r.RawResponse.Header, time.Now())
		if body, err := runtime.Payload(r.RawResponse); err == nil {
			var b struct {
				Error struct {
					Code    string `json:"code"`
					Message string `json:"message"`
				} `json:"error"`
			}
			if json.Unmarshal(body, &b) == nil {
				e.Message = b.Error.Message
				if b.Error.Code != "" {
					e.Code = b.Error.Code
				}
			}
		}
	}
	if e.Message == "" {
		e.Message = http.StatusText(e.Status)
	}
	return e
}

// describe returns Entra's description of why it refused a credential.
func describe(r *http.Response) string {
	if r == nil {
		return ""
	}
	body, err := runtime.Payload(r)
	var b struct {
		Description string `json:"error_description"`
	}
	if err != nil || json.Unmarshal(body, &b) != nil {
		return ""
	}
	first, _, _ := strings.Cut(b.Description, "\n")
	return ": " + strings.TrimSpace(first)
}

// wait reads Retry-After, seconds or a date (RFC 9110 section 10.2.3), and
// Azure's headers with milliseconds. At most an hour.
func wait(h http.Header, now time.Time) time.Duration {
	for _, x := range []struct {
		name string
		unit time.Duration
	}{{"Retry-After-Ms", time.Millisecond}, {"X-Ms-Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		if n, err := strconv.Atoi(h.Get(x.name)); err == nil && n > 0 {
			return time.Duration(min(n, int(time.Hour/x.unit))) * x.unit
		}
	}
	if at, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		return min(max(at.Sub(now), 0), time.Hour)
	}
	return 0
}
