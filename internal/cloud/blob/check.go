package blob

import (
	"errors"
	"fmt"
	"strings"

	"github.com/lanyard-id/lanyard/internal/cloud/management/storage"
	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// Check verifies what must hold after every transaction:
//
//   - every container is in an account that exists, every blob and uncommitted block in a container that exists
//   - every blob is as large as its parts, and no larger than MaxBlob
//   - every part has all its content, and there is no other content
func Check(tx *state.Tx) error {
	k := checker{tx: tx, accounts: map[string]bool{}, content: map[string]bool{}}
	names, err := storage.Names(tx)
	k.note(err)
	for _, name := range names {
		a, ok, err := storage.Find(tx, name)
		k.note(err)
		if !ok {
			k.note(fmt.Errorf("storage account name %s leads nowhere", name))
		}
		k.accounts[a.UniqueID] = true
	}
	containers := map[string]bool{}
	for _, key := range k.keys(bucketContainers) {
		containers[key] = true
		if unique, _, _ := strings.Cut(key, "/"); !k.accounts[unique] {
			k.note(fmt.Errorf("container %s is in no account", key))
		}
	}
	within := func(key string) {
		if parts := strings.SplitN(key, "/", 3); len(parts) < 3 || !containers[parts[0]+"/"+parts[1]] {
			k.note(fmt.Errorf("blob %q is in no container", key))
		}
	}
	for _, key := range k.keys(bucketBlobs) {
		within(key)
		b, _, err := state.Get[Blob](tx, bucketBlobs, key)
		k.note(err)
		var size int64
		for _, p := range b.Parts {
			size += p.Size
			k.part(p)
		}
		if size != b.Size || size > MaxBlob || !strings.HasSuffix(key, "/"+b.Name) || b.ETag == "" {
			k.note(fmt.Errorf("blob %q has %d bytes in %d parts of %d, name %q, tag %s", key, b.Size, len(b.Parts), size, b.Name, b.ETag))
		}
	}
	for _, key := range k.keys(bucketBlocks) {
		within(key)
		p, _, err := state.Get[Part](tx, bucketBlocks, key)
		k.note(err)
		k.part(p)
	}
	for _, key := range k.keys(bucketContent) {
		if !k.content[key] {
			k.note(fmt.Errorf("content %s belongs to no blob", key))
		}
		delete(k.content, key)
	}
	for key := range k.content {
		k.note(fmt.Errorf("content %s is missing", key))
	}
	return errors.Join(k.problems...)
}

type checker struct {
	tx                *state.Tx
	accounts, content map[string]bool
	problems          []error
}

func (k *checker) note(err error) {
	if err != nil {
		k.problems = append(k.problems, err)
	}
}

func (k *checker) keys(bucket string) []string {
	keys, err := state.Keys(k.tx, bucket, "")
	k.note(err)
	return keys
}

func (k *checker) part(p Part) {
	for i := range int((p.Size + chunk - 1) / chunk) {
		k.content[chunkKey(p.Content, i)] = true
	}
}
