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
		"help is no failure":                        {[]string{"--help"}, 0, "", "about 8 minutes"},
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
