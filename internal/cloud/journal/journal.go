// Package journal is the local cloud's request log: who asked which host what, and how it ended. It holds no query
// string, header or body, because that is where tokens and secrets travel.
//
//	request -> With(ctx) -> the host: NoteOf(ctx).Client = …
//	        -> Journal.Append(Entry) -> a ring in memory (Tail, Follow) and a file, one JSON object a line
package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// keep is how many entries the ring has.
	keep = 4096
	// maxFile is the size at which the file becomes FILE.1 and a new one begins.
	maxFile = 16 << 20
	// maxPath has room for every ARM id that people write.
	maxPath = 1024
	// maxSegment is longer than any name in Azure; what is longer may be a token in the wrong place.
	maxSegment = 260
)

// An Entry is one request.
type Entry struct {
	Time   time.Time `json:"time"` // when it came, by the real clock
	Host   string    `json:"host"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	// Status is what was answered; 0 means that the connection ended without an answer.
	Status       int     `json:"status"`
	Milliseconds float64 `json:"milliseconds"`
	// Client is the application that the request speaks for, as it says itself: proved only if it succeeded.
	Client  string `json:"client,omitempty"`
	Machine string `json:"machine,omitempty"` // ARM id of the machine whose metadata service was asked
	Fault   string `json:"fault,omitempty"`   // id of the fault that met it
}

// A Note is what the parts of the cloud add about a request.
type Note struct{ Client, Fault string }

type noteKey struct{}

// With gives a request's context a note.
func With(ctx context.Context) (context.Context, *Note) {
	n := &Note{}
	return context.WithValue(ctx, noteKey{}, n), n
}

// NoteOf is the note of a context, never nil.
func NoteOf(ctx context.Context) *Note {
	if n, ok := ctx.Value(noteKey{}).(*Note); ok {
		return n
	}
	return &Note{}
}

// A Journal keeps entries. Its methods may be called concurrently.
type Journal struct {
	mu      sync.Mutex
	ring    []Entry
	count   int           // of all entries there ever were
	changed chan struct{} // closed by the next Append
	path    string
	file    *os.File
	size    int64
	err     error // why the file is not written any more
}

// Open opens a journal that appends to a file of mode 0600. An empty path means no file.
func Open(path string) (*Journal, error) {
	j := &Journal{ring: make([]Entry, 0, keep), changed: make(chan struct{}), path: path}
	if path == "" {
		return j, nil
	}
	return j, j.open()
}

func (j *Journal) open() error {
	f, err := os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the request log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("opening the request log: %w", err), f.Close())
	}
	j.file, j.size = f, info.Size()
	return nil
}

// Append adds an entry. That its file cannot be written is reported by Close.
func (j *Journal) Append(e Entry) {
	e.Path = clean(e.Path)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ring) < keep {
		j.ring = append(j.ring, e)
	} else {
		j.ring[j.count%keep] = e
	}
	j.count++
	close(j.changed)
	j.changed = make(chan struct{})
	if j.file != nil && j.err == nil {
		j.err = j.write(e)
	}
}

func (j *Journal) write(e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if j.size > maxFile {
		if err := errors.Join(j.file.Close(), os.Rename(j.path, j.path+".1")); err != nil {
			return err
		}
		if err := j.open(); err != nil {
			return err
		}
	}
	n, err := j.file.Write(append(line, '\n'))
	j.size += int64(n)
	return err
}

// clean shortens a path and hides what can only be a token.
func clean(path string) string {
	if len(path) > maxPath {
		path = strings.ToValidUTF8(path[:maxPath], "") + "..."
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if len(s) > maxSegment || strings.HasPrefix(s, "eyJ") {
			segments[i] = "(hidden)"
		}
	}
	return strings.Join(segments, "/")
}

// Tail returns the last n entries that are in memory, oldest first; a negative n means all of them.
func (j *Journal) Tail(n int) []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	from := j.count - len(j.ring)
	if n >= 0 {
		from = max(from, j.count-n)
	}
	entries, _, _ := j.since(from)
	return entries
}

// since returns the entries from number from on, the number after them, and what the next Append closes.
func (j *Journal) since(from int) ([]Entry, int, <-chan struct{}) {
	from = max(from, j.count-len(j.ring))
	entries := make([]Entry, 0, j.count-from)
	for i := from; i < j.count; i++ {
		entries = append(entries, j.ring[i%keep])
	}
	return entries, j.count, j.changed
}

// Follow calls f with the last n entries and with all that come, until f or the context ends it. Who is slower than the
// requests misses some.
func (j *Journal) Follow(ctx context.Context, n int, f func([]Entry) error) error {
	j.mu.Lock()
	next := max(0, j.count-n)
	j.mu.Unlock()
	for {
		j.mu.Lock()
		entries, after, changed := j.since(next)
		j.mu.Unlock()
		next = after
		if len(entries) > 0 {
			if err := f(entries); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Close closes the file. It reports why the file does not hold all entries, if so.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	err := errors.Join(j.err, j.file.Close())
	j.file = nil
	if err != nil {
		return fmt.Errorf("writing the request log: %w", err)
	}
	return nil
}
