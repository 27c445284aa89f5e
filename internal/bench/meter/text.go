package meter

import (
	"fmt"
	"time"
)

// InMicros is a duration in microseconds.
func InMicros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// InMillis is a duration in milliseconds.
func InMillis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Micros is a duration in microseconds, for people.
func Micros(d time.Duration) string { return fmt.Sprintf("%.1f µs", InMicros(d)) }

// Megabytes is a number of bytes, for people.
func Megabytes(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }

// Brief is a duration with as many digits as are worth reading.
func Brief(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.0f µs", InMicros(d))
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", InMillis(d))
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}
