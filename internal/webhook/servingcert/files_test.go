package servingcert

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFilesFollowTheDirectory(t *testing.T) {
	dir := t.TempDir()
	files := &Files{Dir: dir}
	if err := files.Ready(); err == nil || !strings.Contains(err.Error(), "tls.crt") {
		t.Errorf("an empty directory: %v", err)
	}
	serial := func() string {
		c, err := files.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	write := func(age time.Duration) string {
		m, _ := renewed(t, Policy{}.withDefaults(), keyMaterial{}, time.Now())
		data, err := m.data()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"tls.crt", "tls.key"} {
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, data[name], 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(-age)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		return m.leaf.Leaf.SerialNumber.String()
	}
	first := write(time.Minute)
	if got := serial(); got != first {
		t.Errorf("serves %s, want %s", got, first)
	}
	if err := os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != first {
		t.Errorf("a half-written pair is served: %s", got)
	}
	second := write(0)
	if got := serial(); got != second {
		t.Errorf("serves %s, want the new %s", got, second)
	}
}
