package meter

import (
	"testing"
	"time"
)

func TestNumbersAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{1234 * time.Nanosecond: "1 µs", 12345 * time.Microsecond: "12.3 ms", 12345 * time.Millisecond: "12.3 s"} {
		if got := Brief(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
