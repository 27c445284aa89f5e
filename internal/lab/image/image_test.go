package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// pause is the real binary that every pod needs.
func pause(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pause")
	cmd := exec.Command("go", "build", "-o", file, "github.com/lanyard-id/lanyard/cmd/pause")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building pause: %v\n%s", err, out)
	}
	return file
}

func TestAnImageHoldsTheBinaryAndWhatItNeeds(t *testing.T) {
	binary := pause(t)
	file := filepath.Join(t.TempDir(), "pause.tar")
	i := Image{Ref: "lanyard/pause:dev", Binary: binary, User: "65532:65532", CACerts: []byte("-----BEGIN CERTIFICATE-----\n")}
	if err := i.WriteFile(file); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/pause"}, cfg.Config.Entrypoint); diff != "" {
		t.Errorf("entrypoint (-want +got):\n%s", diff)
	}
	if cfg.Config.User != "65532:65532" || cfg.OS != "linux" || cfg.Architecture == "" {
		t.Errorf("config: user %q os %q architecture %q", cfg.Config.User, cfg.OS, cfg.Architecture)
	}
	want, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	content := tar.NewReader(mutate.Extract(img))
	for {
		h, err := content.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(content)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "pause" && !bytes.Equal(b, want) {
			t.Error("the binary in the image differs")
		}
		got[h.Name] = fmt.Sprintf("%o", h.Mode)
	}
	modes := map[string]string{
		"tmp": "1777", "etc": "755", "etc/passwd": "644", "etc/group": "644", "etc/ssl": "755", "etc/ssl/certs": "755",
		"etc/ssl/certs/ca-certificates.crt": "644", "pause": "755",
	}
	if diff := cmp.Diff(modes, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestTheSameInputGivesTheSameBytes(t *testing.T) {
	i := Image{Ref: "lanyard/pause:dev", Binary: pause(t)}
	sum := func() [32]byte {
		var b bytes.Buffer
		if err := i.Write(&b); err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(b.Bytes())
	}
	first := sum()
	if sum() != first {
		t.Error("two archives of the same image differ")
	}
	i.CACerts = []byte("another authority")
	if sum() == first {
		t.Error("an image with another authority is the same")
	}
}

func TestWhatCannotRunIsRefused(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		image Image
		want  string
	}{
		{"a script is not a binary", Image{Ref: "a/b:c", Binary: script}, "is not a Linux binary"},
		{"a binary that needs the C library cannot run", Image{Ref: "a/b:c", Binary: "/bin/ls"}, "CGO_ENABLED=0"},
		{"a missing binary is named", Image{Ref: "a/b:c", Binary: "/nowhere/mic"}, "/nowhere/mic"},
		{"a reference needs a proper name", Image{Ref: "Not A Name", Binary: script}, "naming an image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			err := c.image.WriteFile(filepath.Join(dir, "out.tar"))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
