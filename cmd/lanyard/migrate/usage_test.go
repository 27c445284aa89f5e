package migrate_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong on the command line ends with 2 and says what to do instead.
func TestMistakesOnTheCommandLine(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}]}`
	must(t, os.WriteFile(kubeconfig, []byte(text), 0o600))
	for args, want := range map[string]struct {
		code int
		said string
	}{
		"plan --proxy=sometimes":                        {2, "use auto, always, never"},
		"plan --federation=mail":                        {2, "use azure, controller"},
		"plan -A --workload deployment/api":             {2, "give -n in place of -A"},
		"plan --workload api":                           {2, "write KIND/NAME"},
		"plan --workload secret/api":                    {2, "no kind of workload"},
		"plan --azure-env Nowhere":                      {2, "unknown cloud"},
		"plan --auth-method=client_secret":              {2, "--client-id is required"},
		"plan -o xml":                                   {2, "use json or yaml"},
		"apply now":                                     {2, "unknown argument"},
		"rollback --force --keep-edits":                 {2, "exclude each other"},
		"rollback --auth-method=guess":                  {2, "unknown authentication method"},
		"verify":                                        {1, "connection refused"},
		"plan --offline --audit-log /nonexistent/audit": {1, "/nonexistent/audit"},
		"--help":       {0, "rollback -n shop"},
		"apply --help": {0, "--recreate-jobs"},
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", append([]string{"lanyard", "migrate"}, strings.Fields(args)...)...)
		cmd.Env = []string{"KUBECONFIG=" + kubeconfig, "HOME=/nonexistent"}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want.code || !strings.Contains(string(out), want.said) {
			t.Errorf("lanyard migrate %s: %d, want %d and %q:\n%s", args, code, want.code, want.said, out)
		}
	}
}
