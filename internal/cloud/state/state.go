// Package state keeps what the local cloud knows: JSON values in named
// buckets of one file, changed by transactions.
//
//	Update(func(tx) error)   all of it is on disk, or nothing is
//	View(func(tx) error)     a snapshot; never sees half a change
//
// The packages that own the values (directory, management, vault, login)
// take a *Tx as first argument, so one ARM request can change several of
// them in one transaction. A transaction must not outlive its function, and
// a View or Update must not be started from inside an Update.
//
// Keys are compared as bytes. Owners that promise case-insensitive names
// (ARM ids) fold the key before they call.
package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// ErrInUse is returned by Open when another process (or another DB value of
// this one) has the file open.
var ErrInUse = errors.New("state file is in use by another process")

// lockWait is how long Open waits for a process that is just ending.
const lockWait = 500 * time.Millisecond

// DB is one open state file. Its methods may be called concurrently: any
// number of View, one Update at a time.
type DB struct {
	bolt *bbolt.DB
}

// Tx is one transaction.
type Tx struct {
	bolt *bbolt.Tx
}

// Open opens or creates the file with mode 0600. The directory must exist.
// The file is locked until Close; a second Open fails with ErrInUse.
func Open(path string) (*DB, error) {
	b, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("opening %s: %w: stop that process, or choose another state directory", path, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("opening state file %s: %w", path, err)
	}
	// The file may come from a copy or a backup that lost its mode; it holds keys.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protecting state file %s: %w", path, err), b.Close())
	}
	return &DB{bolt: b}, nil
}

// Close waits for running transactions and releases the file.
func (d *DB) Close() error {
	if err := d.bolt.Close(); err != nil {
		return fmt.Errorf("closing state file: %w", err)
	}
	return nil
}

// Update runs f in a read-write transaction. The change is durable when
// Update returns nil; an error or panic of f undoes all of it, and the error
// is returned as it is.
func (d *DB) Update(f func(*Tx) error) error {
	return d.bolt.Update(func(tx *bbolt.Tx) error { return f(&Tx{bolt: tx}) })
}

// View runs f on a read-only snapshot. Put and Delete fail in it.
func (d *DB) View(f func(*Tx) error) error {
	return d.bolt.View(func(tx *bbolt.Tx) error { return f(&Tx{bolt: tx}) })
}

// Get reads the value of key. It reports false if there is none.
func Get[T any](tx *Tx, bucket, key string) (T, bool, error) {
	var v T
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil {
		return v, false, nil
	}
	raw := b.Get([]byte(key))
	if raw == nil {
		return v, false, nil
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, false, fmt.Errorf("reading %s %q from state: %w", bucket, key, err)
	}
	return v, true, nil
}

// Put stores v under key (1 to 32768 bytes), replacing what was there.
func Put[T any](tx *Tx, bucket, key string, v T) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s %q: %w", bucket, key, err)
	}
	b, err := tx.bolt.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return fmt.Errorf("opening bucket %s: %w", bucket, err)
	}
	if err := b.Put([]byte(key), raw); err != nil {
		return fmt.Errorf("storing %s %q: %w", bucket, key, err)
	}
	return nil
}

// Delete removes key. Nothing happens if it does not exist.
func Delete(tx *Tx, bucket, key string) error {
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	if err := b.Delete([]byte(key)); err != nil {
		return fmt.Errorf("deleting %s %q: %w", bucket, key, err)
	}
	return nil
}

// List reads all values whose key starts with prefix ("" means all), ordered
// by key. The result is nil if there are none.
func List[T any](tx *Tx, bucket, prefix string) ([]T, error) {
	var vs []T
	err := each(tx, bucket, prefix, func(k, raw []byte) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("reading %s %q from state: %w", bucket, k, err)
		}
		vs = append(vs, v)
		return nil
	})
	return vs, err
}

// Keys reads the keys that start with prefix, ordered.
func Keys(tx *Tx, bucket, prefix string) ([]string, error) {
	var ks []string
	err := each(tx, bucket, prefix, func(k, _ []byte) error {
		ks = append(ks, string(k))
		return nil
	})
	return ks, err
}

func each(tx *Tx, bucket, prefix string, f func(k, v []byte) error) error {
	b := tx.bolt.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, v := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
		if err := f(k, v); err != nil {
			return err
		}
	}
	return nil
}
