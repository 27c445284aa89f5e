package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteTable writes the rows for people, and below them what else was seen.
func WriteTable(w io.Writer, rows []Measurement) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tWHAT\tV1 MEASURED\tREACH\tMEASURED NOW\tBETTER THAN V1")
	for _, m := range rows {
		ok, ratio := "ok", m.Ratio
		if !m.OK {
			ok = "MISSED"
		}
		if m.Error != "" {
			ok = "FAILED"
		}
		if ratio == "" {
			ratio = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", ok, m.What, m.V1, m.Reach, m.Now, ratio)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, m := range rows {
		for _, text := range []string{m.Note, m.Error} {
			if text == "" {
				continue
			}
			if _, err := fmt.Fprintf(w, "\n%s: %s\n", m.Name, strings.ReplaceAll(text, "\n", "\n    ")); err != nil {
				return err
			}
		}
	}
	return nil
}

// WriteList writes what can be measured.
func WriteList(w io.Writer, experiments []Experiment) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, e := range experiments {
		fmt.Fprintf(t, "%s\t%s\t\t\n", e.Name, e.What)
		for _, r := range e.Rows {
			fmt.Fprintf(t, "  %s\t%s\twas: %s\treach: %s\n", r.Name, r.What, r.V1, r.Reach)
		}
	}
	return t.Flush()
}

// Missed counts the rows that are not as they should be, and those among them
// that could not be measured at all.
func Missed(rows []Measurement) (missed, failed int) {
	for _, m := range rows {
		if !m.OK {
			missed++
		}
		if m.Error != "" {
			failed++
		}
	}
	return missed, failed
}

// Times says how many times better now is than v1.
func Times[T time.Duration | float64](v1, now T) string {
	if now <= 0 {
		return "-"
	}
	x := float64(v1) / float64(now)
	if x >= 10 {
		return fmt.Sprintf("%.0f times", x)
	}
	return fmt.Sprintf("%.1f times", x)
}
