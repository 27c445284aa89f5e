package rotation

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/issuer"
)

// Files of a key directory. The first two are the API servers': those of
// kubeadm in /etc/kubernetes/pki. The others exist during a rotation.
const (
	SigningKey   = "sa.key" // --service-account-signing-key-file
	Bundle       = "sa.pub" // --service-account-key-file
	nextKey      = "sa.next.key"
	formerKey    = "sa.key.before-rotation"
	formerBundle = "sa.pub.before-rotation"
	stateFile    = "sa.rotation.json"
)

// keyBits is what kubeadm makes; more costs every token request.
const keyBits = 2048

// A KeyDir is the directory of the key files, for one rotation at a time.
type KeyDir struct {
	Path string
	root *os.Root
	lock *os.File
}

// OpenKeyDir takes the directory for this process alone. It refuses one that
// somebody else could put files into.
func OpenKeyDir(path string) (*KeyDir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("opening the key directory: %w", err)
	}
	d := &KeyDir{Path: path, root: root}
	if err := d.claim(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *KeyDir) claim() error {
	f, err := d.root.Open(".")
	if err != nil {
		return fmt.Errorf("opening the key directory: %w", err)
	}
	d.lock = f
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("opening the key directory: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write into %s: take that away first (chmod go-w)", d.Path)
	}
	if owner := int(info.Sys().(*syscall.Stat_t).Uid); owner != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: run this as that user", d.Path, owner)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("another process works in %s: wait for it, or look with: lanyard issuer rotate status", d.Path)
	} else if err != nil {
		return fmt.Errorf("locking %s: %w", d.Path, err)
	}
	return nil
}

// Close gives the directory up.
func (d *KeyDir) Close() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	return errors.Join(err, d.root.Close())
}

// ReadState returns what a key directory says about its rotation, without
// taking it: another process may be at work there.
func ReadState(path string) (State, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return State{}, fmt.Errorf("opening the key directory: %w", err)
	}
	d := &KeyDir{Path: path, root: root}
	defer d.Close()
	return d.state()
}

// read reads a regular file. A symbolic link is refused: what it leads to may
// be another's to choose, and replacing it would leave the file as it is.
func (d *KeyDir) read(name string) ([]byte, error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s in %s is not a regular file (%s): put the file itself there", name, d.Path, info.Mode().Type())
	}
	// The API server may run as a user of its own, who is in the file's group.
	if name != Bundle && name != formerBundle && info.Mode().Perm()&0o037 != 0 {
		return nil, fmt.Errorf("others may read %s in %s: a key that others may have read must not sign; if nobody has, take that away (chmod o= %[1]s)", name, d.Path)
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, issuer.MaxDocument+1))
	if err == nil && len(data) > issuer.MaxDocument {
		err = fmt.Errorf("%s has more than %d bytes", name, issuer.MaxDocument)
	}
	return data, err
}

// write replaces a file. What the API servers read stays readable for whom it was.
func (d *KeyDir) write(name string, data []byte) error {
	mode := fs.FileMode(0o600)
	info, err := d.root.Lstat(name)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("%s in %s is not a regular file: it is not replaced", name, d.Path)
	case err == nil && (name == Bundle || name == SigningKey):
		mode = info.Mode().Perm() &^ 0o022
	}
	if err := issuer.ReplaceFile(d.root, name, data, mode); err != nil {
		return fmt.Errorf("writing %s in %s: %w", name, d.Path, err)
	}
	return nil
}

func (d *KeyDir) remove(names ...string) error {
	for _, name := range names {
		if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing %s from %s: %w", name, d.Path, err)
		}
	}
	return nil
}

func (d *KeyDir) state() (State, error) {
	var s State
	data, err := d.read(stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err == nil && (s.Version != stateVersion || s.Step == "") {
		err = fmt.Errorf("it is of version %d and in step %q: another version of this command has written it", s.Version, s.Step)
	}
	if err != nil {
		return State{}, fmt.Errorf("reading the state of the rotation in %s: %w", d.Path, err)
	}
	return s, nil
}

func (d *KeyDir) save(s State) error {
	s.Version = stateVersion
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return d.write(stateFile, append(data, '\n'))
}

// keyID is the id of a private key file's key.
func (d *KeyDir) keyID(name string) (string, error) {
	data, err := d.read(name)
	if err != nil {
		return "", err
	}
	k, err := private(data)
	if err != nil {
		return "", fmt.Errorf("%s in %s: %w", name, d.Path, err)
	}
	return issuer.KeyID(k.Public())
}

func private(data []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, errors.New("it holds no private key in PEM form")
		}
		switch block.Type {
		case "RSA PRIVATE KEY", "EC PRIVATE KEY", "PRIVATE KEY":
			return issuer.ParsePrivate(block)
		}
	}
}

// bundle returns the keys that the bundle holds. One that is missing is that of
// the signing key: some clusters verify with sa.key itself.
func (d *KeyDir) bundle() ([]issuer.Key, error) {
	data, err := d.read(Bundle)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = d.read(SigningKey)
	}
	if err != nil {
		return nil, err
	}
	keys, err := issuer.ParsePEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", Bundle, d.Path, err)
	}
	return keys, nil
}

// setBundle writes the bundle with one key more and another less; either may be
// empty. It does nothing if that is what it holds.
func (d *KeyDir) setBundle(add *issuer.Key, without string) error {
	has, err := d.bundle()
	if err != nil {
		return err
	}
	want := slices.DeleteFunc(slices.Clone(has), func(k issuer.Key) bool { return k.ID == without })
	if add != nil {
		want = issuer.Merge(want, *add)
	}
	if len(want) == 0 {
		return fmt.Errorf("without the key %s the bundle %s in %s would be empty", without, Bundle, d.Path)
	}
	data, err := encodeBundle(want)
	if err != nil {
		return err
	}
	if is, err := d.read(Bundle); err == nil && bytes.Equal(is, data) {
		return nil
	}
	return d.write(Bundle, data)
}

func encodeBundle(keys []issuer.Key) ([]byte, error) {
	var b bytes.Buffer
	for _, k := range keys {
		der, err := x509.MarshalPKIXPublicKey(k.Public)
		if err != nil {
			return nil, err
		}
		if err := pem.Encode(&b, &pem.Block{Type: "PUBLIC KEY", Bytes: der}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// makeNext makes the next key, unless an interrupted try has, and returns it.
func (d *KeyDir) makeNext() (issuer.Key, error) {
	data, err := d.read(nextKey)
	if errors.Is(err, fs.ErrNotExist) {
		var key *rsa.PrivateKey
		if key, err = rsa.GenerateKey(rand.Reader, keyBits); err != nil {
			return issuer.Key{}, fmt.Errorf("making a key: %w", err)
		}
		data = pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
		err = d.write(nextKey, data)
	}
	if err != nil {
		return issuer.Key{}, err
	}
	k, err := private(data)
	if err != nil {
		return issuer.Key{}, fmt.Errorf("%s in %s: %w", nextKey, d.Path, err)
	}
	return issuer.NewKey(k.Public())
}

// backup keeps the files as they were before the rotation, until its end.
func (d *KeyDir) backup() error {
	for from, to := range map[string]string{SigningKey: formerKey, Bundle: formerBundle} {
		if _, err := d.root.Lstat(to); err == nil {
			continue
		}
		data, err := d.read(from)
		if errors.Is(err, fs.ErrNotExist) && from == Bundle {
			continue
		}
		if err == nil {
			err = d.write(to, data)
		}
		if err != nil {
			return fmt.Errorf("keeping %s: %w", from, err)
		}
	}
	return nil
}

// promote makes the next key the one that signs.
func (d *KeyDir) promote() error {
	data, err := d.read(nextKey)
	if err != nil {
		return fmt.Errorf("reading the next key: %w", err)
	}
	return d.write(SigningKey, data)
}
