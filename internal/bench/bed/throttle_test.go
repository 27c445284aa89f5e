package bed

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestAThrottledCommandEntersTheGroupBeforeItIsTheProgram(t *testing.T) {
	group := &Throttle{dir: t.TempDir()}
	line := group.Command("/bin/echo", "it's", "me; exit 1")
	cmd := exec.Command(line[0], line[1:]...)
	said, err := cmd.Output()
	if err != nil || string(said) != "it's me; exit 1\n" {
		t.Errorf("it said %q, %v", said, err)
	}
	procs, err := os.ReadFile(filepath.Join(group.dir, "cgroup.procs"))
	if err != nil || strings.TrimSpace(string(procs)) != strconv.Itoa(cmd.Process.Pid) {
		t.Errorf("process %d entered as %q, %v", cmd.Process.Pid, procs, err)
	}
}
