package blob

import (
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

// chunk is how much of a blob is one value of the state: a small range of a large blob reads little.
const chunk = 1 << 20

// A Part is a run of bytes of a blob: the whole of one that was put at once, or a block.
type Part struct {
	Block   string `json:",omitempty"` // id of the block, base64 as the client wrote it
	Content string // GUID
	Size    int64
}

// keep stores content.
func keep(tx *state.Tx, block string, content []byte) (Part, error) {
	p := Part{Block: block, Content: uuid.NewString(), Size: int64(len(content))}
	i := 0
	for piece := range slices.Chunk(content, chunk) {
		if err := state.Put(tx, bucketContent, chunkKey(p.Content, i), piece); err != nil {
			return Part{}, err
		}
		i++
	}
	return p, nil
}

func chunkKey(content string, i int) string { return fmt.Sprintf("%s/%04d", content, i) }

// discard deletes the content of parts, except of those that are also in but.
func discard(tx *state.Tx, parts, but []Part) error {
	for _, p := range parts {
		if slices.ContainsFunc(but, func(o Part) bool { return o.Content == p.Content }) {
			continue
		}
		for i := range int((p.Size + chunk - 1) / chunk) {
			if err := state.Delete(tx, bucketContent, chunkKey(p.Content, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// clearBlocks deletes the uncommitted blocks whose keys start with prefix; the content of those in but stays.
func clearBlocks(tx *state.Tx, prefix string, but []Part) error {
	keys, err := state.Keys(tx, bucketBlocks, prefix)
	if err != nil {
		return err
	}
	for _, k := range keys {
		p, _, err := state.Get[Part](tx, bucketBlocks, k)
		if err != nil {
			return err
		}
		if err := discard(tx, []Part{p}, but); err != nil {
			return err
		}
		if err := state.Delete(tx, bucketBlocks, k); err != nil {
			return err
		}
	}
	return nil
}

// read returns the bytes from start to end of the parts together.
func read(tx *state.Tx, parts []Part, start, end int64) ([]byte, error) {
	out := make([]byte, 0, max(end-start, 0))
	var at int64 // where the part, then the chunk, begins
	for _, p := range parts {
		for i := range int((p.Size + chunk - 1) / chunk) {
			from := at + int64(i)*chunk
			size := min(p.Size-int64(i)*chunk, chunk)
			if from+size <= start || from >= end {
				continue
			}
			piece, ok, err := state.Get[[]byte](tx, bucketContent, chunkKey(p.Content, i))
			if err != nil {
				return nil, err
			}
			if !ok || int64(len(piece)) != size {
				return nil, fmt.Errorf("content %s lacks its piece %d", p.Content, i)
			}
			out = append(out, piece[max(start-from, 0):min(end-from, size)]...)
		}
		at += p.Size
	}
	return out, nil
}
