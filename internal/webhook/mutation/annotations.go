package mutation

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
)

// tokenExpiration is the token's lifetime in seconds. The pod's annotation
// hides the service account's, valid or not.
func tokenExpiration(pod Pod, sa ServiceAccount) (int64, error) {
	const annotation = workloadidentity.AnnotationTokenExpiration
	value, owner := pod.Annotations[annotation], "the pod"
	if value == "" {
		value, owner = sa.Annotations[annotation], fmt.Sprintf("service account %s/%s", sa.Namespace, sa.Name)
	}
	if value == "" {
		return workloadidentity.DefaultTokenExpiration, nil
	}
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, deny("annotation %s of %s: %v: write the token's lifetime as a number of seconds between %d and %d, without a unit",
			annotation, owner, err, workloadidentity.MinTokenExpiration, workloadidentity.MaxTokenExpiration)
	}
	if seconds < workloadidentity.MinTokenExpiration || seconds > workloadidentity.MaxTokenExpiration {
		return 0, deny("token expiration %d not valid. Expected value to be between %d and %d seconds: correct or remove the annotation %s of %s",
			seconds, workloadidentity.MinTokenExpiration, workloadidentity.MaxTokenExpiration, annotation, owner)
	}
	return seconds, nil
}

// skipped is the set of container names that are left alone.
func skipped(pod Pod) map[string]bool {
	skip := map[string]bool{}
	for _, name := range strings.Split(pod.Annotations[workloadidentity.AnnotationSkipContainers], ";") {
		if name = strings.TrimSpace(name); name != "" {
			skip[name] = true
		}
	}
	return skip
}

// quote shows a value that a user wrote, at a length that fits a message.
func quote(s string) string { return strconv.QuoteToASCII(truncate(s, 60)) }

// truncate cuts s to at most n bytes, between characters.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}

func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch hyphen := i == 8 || i == 13 || i == 18 || i == 23; {
		case hyphen && c == '-':
		case !hyphen && strings.IndexByte("0123456789abcdefABCDEF", c) >= 0:
		default:
			return false
		}
	}
	return true
}
