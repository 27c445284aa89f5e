package issuer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// A Directory is a folder whose content some web server publishes at the
// issuer's URL. It is made if it is missing. Nothing outside of it is touched,
// wherever symbolic links lead.
type Directory struct{ Path string }

func (d Directory) String() string { return "the directory " + d.Path }

// Read returns the two files. Nothing there is no error.
func (d Directory) Read(context.Context) (Published, error) {
	var p Published
	root, err := os.OpenRoot(d.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return p, err
	}
	defer root.Close()
	if p.Configuration, err = readDocument(root, ConfigurationPath); err != nil {
		return p, err
	}
	p.Keys, err = readDocument(root, KeysPath)
	return p, err
}

func readDocument(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(name) // a device or pipe would block Open
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", name)
	}
	if err != nil {
		return nil, err
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxDocument+1))
	if err == nil && len(data) > MaxDocument {
		err = fmt.Errorf("%s has more than %d bytes", name, MaxDocument)
	}
	return data, err
}

// Write replaces one file in one step: who reads sees the old or the new. The
// files are for everybody to read.
func (d Directory) Write(_ context.Context, name string, data []byte, _ string) error {
	if err := os.MkdirAll(d.Path, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(d.Path)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	return ReplaceFile(root, name, data, 0o644)
}

// ReplaceFile writes a file below root anew beside the old one and puts it in
// its place in one step. Whose the old one is, the new one is too: who reads it
// may be another user than who writes.
func ReplaceFile(root *os.Root, name string, data []byte, mode fs.FileMode) error {
	temp := path.Join(path.Dir(name), "."+path.Base(name)+"."+rand.Text()[:8])
	f, err := root.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = keepOwner(root, name, f, mode)
	}
	if err == nil {
		err = f.Chmod(mode) // whatever the umask; after the owner, whose change takes bits away
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(temp))
	}
	return nil
}

func keepOwner(root *os.Root, name string, f *os.File, mode fs.FileMode) error {
	was, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !was.Mode().IsRegular() {
		return nil
	}
	if err != nil {
		return err
	}
	is, err := f.Stat()
	if err != nil {
		return err
	}
	a, b := was.Sys().(*syscall.Stat_t), is.Sys().(*syscall.Stat_t)
	if a.Uid == b.Uid && a.Gid == b.Gid {
		return nil
	}
	err = f.Chown(int(a.Uid), int(a.Gid))
	if errors.Is(err, fs.ErrPermission) && mode&0o004 != 0 {
		return nil // everybody may read it anyhow
	}
	return err
}
