package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// A person may name any directory. What was there before must survive both a
// refused start and a clean-up.
func TestADirectoryWithOtherThingsInItIsRefusedAndKept(t *testing.T) {
	self, err := process.Self()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		file, content string
		want          string
		clean         bool // whether there is nothing that Clean would look at
	}{
		"a folder of that name":         {"cluster/main.tf", "x", `holds "cluster", which is not of a lab`, true},
		"a folder of that name too":     {"node/package.json", "x", `holds "node", which is not of a lab`, true},
		"a kubeconfig":                  {"kubeconfig", "x", `holds "kubeconfig", which is not of a lab`, true},
		"state of another program":      {"state.json", `{"version": 4}`, "is not the state of a lab", false},
		"state that is no JSON":         {"state.json", "x", "reading the lab's state", false},
		"state that leads elsewhere":    {"state.json", fmt.Sprintf(`{"supervisor":{"pid":%d},"boot":"b","cgroup":"../user"}`, self.PID), "is not the state of a lab", false},
		"state without a cgroup's name": {"state.json", fmt.Sprintf(`{"supervisor":{"pid":%d},"boot":"b"}`, self.PID), "is not the state of a lab", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, tt.file)
			if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the lock is given up each time
				c, err := claimDir(t.Context(), dir)
				if err == nil {
					err = c.release()
					t.Errorf("the directory was taken (%v)", err)
				} else if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %q, want %q", err, tt.want)
				}
			}
			if err := Clean(t.Context(), dir); (err == nil) != tt.clean {
				t.Errorf("cleaning: %v", err)
			}
			if got, err := os.ReadFile(file); string(got) != tt.content || err != nil {
				t.Errorf("%s holds %q, %v; want %q", tt.file, got, err, tt.content)
			}
		})
	}
}

func TestADirectoryIsTakenAndGivenBackAsItWas(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cloud"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := claimDir(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(c.path("cluster", "etcd"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := c.release(); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 1 || left[0].Name() != "cloud" {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}
