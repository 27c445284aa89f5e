package cloud

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/lanyard-id/lanyard/internal/azure"
)

// failureForm writes the body of an injected failure as the host would: clients read it.
func failureForm(host string) func(status int) string {
	switch {
	case slices.Contains(azure.LoginHosts(), host):
		return loginFailure
	case strings.HasSuffix(host, "."+azure.SuffixBlob):
		return func(status int) string {
			return "<Error><Code>" + failureCode(status) + "</Code><Message>A fault of the local cloud: " + http.StatusText(status) + "</Message></Error>"
		}
	case host == azure.AddressMetadata:
		return func(status int) string {
			return object(map[string]any{"error": failureCode(status), "error_description": "A fault of the local cloud: " + http.StatusText(status)})
		}
	}
	return func(status int) string {
		return object(map[string]any{"error": map[string]any{"code": failureCode(status), "message": "A fault of the local cloud: " + http.StatusText(status)}})
	}
}

// loginFailure uses the codes with which Entra says such things.
// Source: https://learn.microsoft.com/entra/identity-platform/reference-error-codes
func loginFailure(status int) string {
	code, name, text := 90033, "temporarily_unavailable", "A transient error has occurred. Please try again."
	switch {
	case status == http.StatusTooManyRequests:
		code, text = 90055, "TenantThrottlingError - There are too many incoming requests."
	case status < http.StatusInternalServerError:
		code, name, text = 9002313, "invalid_request", "Invalid request. Request is malformed or invalid."
	}
	return object(map[string]any{"error": name, "error_codes": []int{code}, "error_description": "AADSTS" + number(code) + ": " + text + " (a fault of the local cloud)"})
}

// failureCode is the name of a status in one word, as Azure's codes are: ServiceUnavailable.
func failureCode(status int) string {
	if text := strings.ReplaceAll(http.StatusText(status), " ", ""); text != "" {
		return text
	}
	return "UnknownError"
}

func number(n int) string { return object(n) }

func object(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return "{}" // maps of text and numbers always encode
	}
	return string(raw)
}
