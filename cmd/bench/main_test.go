package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestCommandLines(t *testing.T) {
	for name, tt := range map[string]struct {
		args        []string
		code        int
		out, errOut string
	}{
		"the list names experiments and rows":       {[]string{"--list"}, 0, "cached-cpu", ""},
		"the list has those of every door":          {[]string{"--list"}, 0, "proxy-cached", ""},
		"help is no failure":                        {[]string{"--help"}, 0, "", "about 12 minutes"},
		"a flag that does not exist is wrong usage": {[]string{"--fast"}, 2, "", "-fast"},
		"an output that does not exist is, too":     {[]string{"-o", "yaml"}, 2, "", `only "json"`},
		"a row that does not exist says what to do": {[]string{"speed"}, 1, "", "--list"},
		"a stand-in must be named":                  {[]string{"stand-in"}, 1, "", "metadata, bare or cloud"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code := run(t.Context(), tt.args, &out, &errOut)
			if code != tt.code || !strings.Contains(out.String(), tt.out) || !strings.Contains(errOut.String(), tt.errOut) {
				t.Errorf("exit %d, stdout %q, stderr %q", code, out.String(), errOut.String())
			}
		})
	}
}

func TestEveryRowSaysWhatIsToBeReachedUnderANameOfItsOwn(t *testing.T) {
	seen := map[string]string{} // the experiment of each name
	for _, e := range experiments() {
		if e.Limit <= 0 || e.Run == nil || e.What == "" || len(e.Rows) == 0 {
			t.Errorf("the experiment %s is not whole", e.Name)
		}
		rows := map[string]bool{}
		for _, r := range e.Rows {
			if r.Name == "" || r.What == "" || r.V1 == "" || r.Reach == "" || rows[r.Name] || seen[r.Name] != "" {
				t.Errorf("the row %+v of %s is not whole, or there are two: %s", r, e.Name, seen[r.Name])
			}
			rows[r.Name], seen[r.Name] = true, e.Name
		}
		if other := seen[e.Name]; other != "" && other != e.Name { // a row may have its experiment's name
			t.Errorf("%s is an experiment and a row of %s", e.Name, other)
		}
		seen[e.Name] = e.Name
	}
}
