// Package image makes container images out of static binaries: no registry,
// no Docker, no base image.
//
//	layer 1   /etc/passwd /etc/group /tmp /etc/ssl/certs/ca-certificates.crt
//	layer 2   the binary
//
// The same input gives the same bytes, hence the same digest.
package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// CABundle is where Go, OpenSSL and Debian look for trusted certificates.
const CABundle = "/etc/ssl/certs/ca-certificates.crt"

// Passwd and Group are the accounts that every image knows. nonroot has the number that distroless
// images made customary.
const (
	Passwd = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n"
	Group  = "root:x:0:\nnonroot:x:65532:\n"
)

// An Image is what to build.
type Image struct {
	Ref        string   // lanyard/mic:dev
	Binary     string   // path of a static Linux binary on this machine
	Entrypoint []string // nil means the binary, which is in / under its own name
	User       string   // "65532:65532"; empty means root
	CACerts    []byte   // PEM; what the programs in the image trust
}

// Write writes the image as a Docker archive, which `ctr images import` reads.
func (i Image) Write(w io.Writer) error {
	ref, err := name.NewTag(i.Ref, name.WeakValidation)
	if err != nil {
		return fmt.Errorf("naming an image: %w", err)
	}
	img, err := i.build()
	if err != nil {
		return fmt.Errorf("building image %s: %w", i.Ref, err)
	}
	if err := tarball.Write(ref, img, w); err != nil {
		return fmt.Errorf("writing image %s: %w", i.Ref, err)
	}
	return nil
}

// WriteFile is Write to a file, which is there only when it is complete.
func (i Image) WriteFile(file string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".image-*")
	if err != nil {
		return fmt.Errorf("writing image %s: %w", i.Ref, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := errors.Join(i.Write(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func (i Image) build() (v1.Image, error) {
	if err := static(i.Binary); err != nil {
		return nil, err
	}
	base, err := i.base()
	if err != nil {
		return nil, err
	}
	inside := "/" + filepath.Base(i.Binary)
	// Compressed, a layer costs seconds and is unpacked on this very machine.
	asIs := tarball.WithCompression(compression.None)
	first, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(base)), nil
	}, asIs)
	if err != nil {
		return nil, err
	}
	second, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return binaryLayer(i.Binary, inside), nil
	}, asIs)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, first, second)
	if err != nil {
		return nil, err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config.Entrypoint = i.Entrypoint
	if len(i.Entrypoint) == 0 {
		cfg.Config.Entrypoint = []string{inside}
	}
	cfg.Config.Env = []string{"PATH=/"}
	cfg.Config.WorkingDir = "/"
	cfg.Config.User = i.User
	return mutate.ConfigFile(img, cfg)
}

// static refuses what could not run in an image without a C library.
func static(binary string) error {
	f, err := elf.Open(binary)
	if err != nil {
		return fmt.Errorf("%s is not a Linux binary: %w", binary, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s needs a dynamic loader, which the image lacks: build it with CGO_ENABLED=0", binary)
		}
	}
	return nil
}

func (i Image) base() ([]byte, error) {
	var buf bytes.Buffer
	t := tar.NewWriter(&buf)
	dir := func(name string, mode int64) error {
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode})
	}
	file := func(name string, content []byte) error {
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: 0o644, Size: int64(len(content))})
		if err == nil {
			_, err = t.Write(content)
		}
		return err
	}
	err := errors.Join(
		dir("tmp/", 0o1777),
		dir("etc/", 0o755),
		file("etc/passwd", []byte(Passwd)),
		file("etc/group", []byte(Group)),
		dir("etc/ssl/", 0o755),
		dir(strings.TrimPrefix(path.Dir(CABundle), "/")+"/", 0o755),
		file(CABundle, i.CACerts),
		t.Close(),
	)
	return buf.Bytes(), err
}

// binaryLayer streams a layer that holds one executable file.
func binaryLayer(binary, inside string) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeBinary(w, binary, inside)) }()
	return r
}

func writeBinary(w io.Writer, binary, inside string) error {
	f, err := os.Open(binary)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(inside, "/"), Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	if _, err := io.Copy(t, f); err != nil {
		return err
	}
	return t.Close()
}
