package arm

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// checkInterval is how long a file that was looked at is not looked at again.
const checkInterval = time.Second

// Files is the Source of an account that is written in files, for example a
// mounted azure.json. A change is in force for the next request; what cannot be
// read or used is logged once, and the account as it was stays. Asking for the
// file when it is needed, rather than watching it, works for every kind of
// mount, and nothing has to be started or stopped.
type Files struct {
	Paths []string // whose content Load reads
	// Load reads the account. Its errors must not quote a secret.
	Load   func() (Account, error)
	Now    func() time.Time // nil means time.Now
	Logger *slog.Logger     // nil means slog.Default

	mu      sync.Mutex
	current *Connection
	digest  [sha256.Size]byte // of the files, when current or the last failure was made
	looked  time.Time
}

// Open reads the account for the first time. It must succeed before Connection
// is called.
func (f *Files) Open() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.digest, f.looked = f.read(), f.now()
	return f.load()
}

// Connection implements Source.
func (f *Files) Connection() *Connection {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.looked) >= checkInterval {
		f.looked = now
		if digest := f.read(); digest != f.digest {
			f.digest = digest
			if err := f.load(); err != nil {
				f.logger().Error("the changed cloud configuration cannot be used: the former one stays in force", "files", f.Paths, "err", err)
			} else {
				f.logger().Info("the changed cloud configuration is in force", "files", f.Paths)
			}
		}
	}
	return f.current
}

// read digests the files: their times say nothing when a mount is swapped, and
// they are small.
func (f *Files) read() (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, p := range f.Paths {
		data, err := os.ReadFile(p)
		fmt.Fprintf(h, "%d %v\n", len(data), err)
		h.Write(data)
	}
	copy(sum[:], h.Sum(nil))
	return sum
}

func (f *Files) load() error {
	a, err := f.Load()
	if err != nil {
		return err
	}
	c, err := a.Connect()
	if err != nil {
		return err
	}
	f.current = c
	return nil
}

func (f *Files) now() time.Time {
	if f.Now != nil {
		return f.Now()
	}
	return time.Now()
}

func (f *Files) logger() *slog.Logger {
	if f.Logger != nil {
		return f.Logger
	}
	return slog.Default()
}
