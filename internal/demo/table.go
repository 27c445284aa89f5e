package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// A Row is one line of the demo's table: what one pod asked for and what it
// got.
type Row struct {
	Door     string `json:"door"`             // "1 IMDS" or "2 Entra direct"
	Pod      string `json:"pod"`              // namespace/name
	Identity string `json:"identity"`         // the managed identity's name; "none" where the pod has none
	Resource string `json:"resource"`         // the secret that is read
	Want     string `json:"want"`             // what the story expects
	Result   string `json:"result"`           // what happened, in a few words
	Reason   string `json:"reason,omitempty"` // of a refusal, as the pod was told it
	OK       bool   `json:"ok"`               // whether Result is what the story expects

	// FirstToken is the time from the request that created the pod to the
	// first token in its hands; zero where it got none.
	FirstToken time.Duration `json:"-"`
	// SecondToken is how long the same request took a second time.
	SecondToken time.Duration `json:"-"`
}

// MarshalJSON writes durations as milliseconds.
func (r Row) MarshalJSON() ([]byte, error) {
	type row Row // without this method
	return json.Marshal(struct {
		row
		FirstToken  float64 `json:"firstTokenMillis,omitzero"`
		SecondToken float64 `json:"secondTokenMillis,omitzero"`
	}{row(r), millis(r.FirstToken), millis(r.SecondToken)})
}

func millis(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}

// WriteTable writes rows as a table for people.
func WriteTable(w io.Writer, rows []Row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tDOOR\tPOD\tIDENTITY\tRESOURCE\tRESULT\tPOD CREATED TO FIRST TOKEN\tSECOND TOKEN")
	for _, r := range rows {
		mark := "ok"
		if !r.OK {
			mark = "FAILED"
		}
		fmt.Fprintln(t, strings.Join([]string{mark, r.Door, r.Pod, r.Identity, r.Resource, r.Result, duration(r.FirstToken), duration(r.SecondToken)}, "\t"))
	}
	return t.Flush()
}

func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", millis(d))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
}

// Failed returns the rows that are not what the story expects.
func Failed(rows []Row) []Row {
	var failed []Row
	for _, r := range rows {
		if !r.OK {
			failed = append(failed, r)
		}
	}
	return failed
}

// readable is a refusal for people: what Azure's error bodies say, without
// their JSON. Text in any other form stays as it is.
func readable(reason string) string {
	text := reason
	if i := strings.IndexByte(reason, '{'); i >= 0 {
		var body struct {
			Error       json.RawMessage `json:"error"`
			Description string          `json:"error_description"`
		}
		var inner struct{ Message string }
		switch {
		case json.Unmarshal([]byte(reason[i:]), &body) != nil:
		case body.Description != "":
			text = reason[:i] + body.Description
		case json.Unmarshal(body.Error, &inner) == nil && inner.Message != "":
			text = reason[:i] + inner.Message
		}
	}
	return strings.Join(strings.Fields(text), " ")
}
