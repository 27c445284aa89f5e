// Package scheduletest writes schedules in a line, for tests.
package scheduletest

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
)

// Parse reads "zone; mon,tue 09:00-17:00; cron 0 9 * * * for 1h; not 2026-12-25".
func Parse(t testing.TB, text string) *v1.Schedule {
	t.Helper()
	s := &v1.Schedule{}
	for i, part := range strings.Split(text, "; ") {
		switch {
		case i == 0:
			s.TimeZone = part
		case strings.HasPrefix(part, "cron "):
			spec, d, _ := strings.Cut(part[5:], " for ")
			s.Cron = spec
			duration, err := time.ParseDuration(d)
			if err != nil {
				t.Fatal(err)
			}
			s.Duration = metav1.Duration{Duration: duration}
		case strings.HasPrefix(part, "not "):
			s.Holidays = append(s.Holidays, part[4:])
		default:
			days, hours, ok := strings.Cut(part, " ")
			if !ok {
				days, hours = "", days
			}
			var w v1.Window
			w.Start, w.End, _ = strings.Cut(hours, "-")
			for d := range strings.SplitSeq(days, ",") {
				if d != "" {
					w.Days = append(w.Days, v1.Day(d))
				}
			}
			s.Windows = append(s.Windows, w)
		}
	}
	return s
}
