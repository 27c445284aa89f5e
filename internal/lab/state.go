package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lanyard-id/lanyard/internal/lab/node"
	"github.com/lanyard-id/lanyard/internal/lab/process"
)

// A State is what the state directory says about its lab, in state.json: who
// runs it, how to use it, and what has to be cleaned up should it be killed.
type State struct {
	Supervisor process.ID        `json:"supervisor"`
	Boot       string            `json:"boot"` // processes are numbered anew by each boot
	Started    time.Time         `json:"started"`
	Ready      bool              `json:"ready"`
	Kubeconfig string            `json:"kubeconfig,omitempty"`
	Extra      map[string]string `json:"extra,omitempty"` // what Publish added

	Cgroup    string       `json:"cgroup"`
	Processes []process.ID `json:"processes,omitempty"`
}

// cgroupName is the form of State.Cgroup: a damaged one must not lead to
// somebody else's.
var cgroupName = regexp.MustCompile(`^lanyard-[0-9a-f]{8}$`)

// ErrNotRunning is returned where a running lab is needed.
var ErrNotRunning = errors.New("no lab is running")

// A RunningError says that the state directory is taken.
type RunningError struct {
	Dir string
	PID int
}

func (e *RunningError) Error() string {
	return fmt.Sprintf(`the lab in %s is already running (pid %d): use "lanyard lab status" or "lanyard lab down"`, e.Dir, e.PID)
}

// A claim is the right to use a state directory. It is a lock on the
// directory itself, which the kernel drops with its holder, however that ends.
type claim struct {
	dir  string
	made bool // by us, so we remove it when it is empty again
	lock *os.File

	mu    sync.Mutex
	state State
}

// entries are what a lab makes in its state directory. Others, such as the
// cloud's state, stay.
var entries = []string{"cluster", "node", "kubeconfig", stateFile}

const stateFile = "state.json"

func claimDir(ctx context.Context, dir string) (*claim, error) {
	c := &claim{dir: dir}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		c.made = true
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	var err error
	if c.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if err = clean(ctx, dir); err == nil {
		err = foreign(dir)
	}
	if err != nil {
		// What is there may be somebody else's: only the lock is ours.
		return nil, errors.Join(err, c.lock.Close())
	}
	err = c.state.begin()
	if err == nil {
		err = c.save(func(*State) {})
	}
	if err != nil {
		return nil, errors.Join(err, c.release())
	}
	return c, nil
}

// Free returns nil if a lab could be started in dir, and a RunningError if one
// runs there. For who has something to prepare before Start.
func Free(dir string) error {
	lock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return lock.Close()
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the state directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	s, err := readState(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return nil, &RunningError{Dir: dir, PID: s.Supervisor.PID}
}

func (s *State) begin() error {
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	self, err := process.Self()
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	*s = State{Supervisor: self, Boot: boot, Started: time.Now().UTC().Truncate(time.Second), Cgroup: "lanyard-" + hex.EncodeToString(id[:])}
	return nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

func (c *claim) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// save changes the state and writes it: the file is always whole.
func (c *claim) save(change func(*State)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.state)
	b, err := json.MarshalIndent(c.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(c.path(stateFile), append(b, '\n'))
}

// record remembers a process that Clean has to end.
func (c *claim) record(pid int) error {
	id, err := process.Find(pid)
	if err != nil {
		return err
	}
	return c.save(func(s *State) { s.Processes = append(s.Processes, id) })
}

// release removes what is ours in the directory and gives it up.
func (c *claim) release() error {
	err := removeEntries(c.dir)
	if c.made {
		// Fails when somebody else keeps something there, as is their right.
		_ = os.Remove(c.dir)
	}
	return errors.Join(err, c.lock.Close())
}

// removeEntries removes state.json last and only when the others are gone: it
// is what makes them ours.
func removeEntries(dir string) error {
	var errs []error
	for _, e := range entries {
		if e != stateFile || errors.Join(errs...) == nil {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, e)))
		}
	}
	return errors.Join(errs...)
}

// foreign refuses a directory in which, after clean, something still has the
// name of what a lab makes and removes: no lab has made it.
func foreign(dir string) error {
	for _, e := range entries {
		if _, err := os.Lstat(filepath.Join(dir, e)); err == nil {
			return fmt.Errorf("%s holds %q, which is not of a lab and would be removed with one: choose another state directory", dir, e)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("looking into the state directory: %w", err)
		}
	}
	return nil
}

func writeFile(file string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func readState(dir string) (State, error) {
	var s State
	file := filepath.Join(dir, stateFile)
	b, err := readOwn(file)
	if err != nil {
		return s, fmt.Errorf("reading the lab's state: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("reading the lab's state: %s: %w", file, err)
	}
	if s.Supervisor.PID <= 0 || s.Boot == "" || !cgroupName.MatchString(s.Cgroup) {
		return State{}, fmt.Errorf("%s is not the state of a lab: choose another state directory", file)
	}
	return s, nil
}

// readOwn reads a file of the user who asks: it names processes to end, which
// must not be another user's to choose.
func readOwn(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return nil, fmt.Errorf("%s belongs to user %d: only that user can use this lab", file, owner)
	}
	return io.ReadAll(f)
}

// Publish adds a value to the state for those who use the lab from other
// processes; see Status.
func (l *Lab) Publish(key, value string) error {
	return l.claim.save(func(s *State) {
		if s.Extra == nil {
			s.Extra = map[string]string{}
		}
		s.Extra[key] = value
	})
}

// Status returns the state of the lab that runs in dir. The error is
// ErrNotRunning when there is none, also when one was killed.
func Status(dir string) (State, error) {
	s, err := readState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, fmt.Errorf("%w in %s", ErrNotRunning, dir)
	}
	if err != nil {
		return State{}, err
	}
	if !s.thisBoot() || !s.Supervisor.Alive() {
		return State{}, fmt.Errorf(`%w in %s, but one was killed there: "lanyard lab down" cleans up`, ErrNotRunning, dir)
	}
	return s, nil
}

func (s State) thisBoot() bool {
	boot, err := bootID()
	return err == nil && boot == s.Boot
}

// downGrace is how long Down lets a lab end by itself.
const downGrace = time.Minute

// Down ends the lab that runs in dir and waits for it; one that does not end
// within a minute is killed, for which ctx must leave time. What a killed one
// left is removed too. The error is ErrNotRunning when there was nothing to do.
func Down(ctx context.Context, dir string) error { return down(ctx, dir, downGrace) }

func down(ctx context.Context, dir string, grace time.Duration) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	s, err := readState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w in %s", ErrNotRunning, dir)
	}
	if err != nil {
		return err
	}
	if s.thisBoot() {
		if err := s.Supervisor.End(ctx, grace); err != nil {
			return fmt.Errorf("ending the lab in %s: %w", dir, err)
		}
	}
	return Clean(ctx, dir)
}

// Clean removes what a lab left behind whose supervisor was killed:
// processes, cgroups, files. It refuses while a lab runs in dir. Nothing to do
// is no error.
func Clean(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	return clean(ctx, dir)
}

// clean is Clean for who holds the lock.
func clean(ctx context.Context, dir string) error {
	s, err := readState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.thisBoot() {
		for _, p := range s.Processes {
			// They end by themselves with their supervisor, but maybe not yet.
			if err := p.End(ctx, 5*time.Second); err != nil {
				return fmt.Errorf("ending what a killed lab left: %w", err)
			}
		}
	}
	if err := node.Clean(ctx, s.Cgroup, filepath.Join(dir, "node")); err != nil {
		return fmt.Errorf("removing what a killed lab left: %w", err)
	}
	return removeEntries(dir)
}
