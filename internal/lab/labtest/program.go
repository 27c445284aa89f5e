package labtest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const module = "module github.com/lanyard-id/lanyard"

// findProgram returns the path of kube: $LANYARD_KUBE or bin/kube of the
// repository around the working directory.
func findProgram() (string, error) {
	program := os.Getenv("LANYARD_KUBE")
	hint := "LANYARD_KUBE names it: correct or unset it"
	if program == "" {
		root, err := findRoot()
		if err != nil {
			return "", err
		}
		program = filepath.Join(root, "bin", "kube")
		hint = `run "make bin/kube" in ` + root + " (about 5 minutes the first time)"
	}
	info, err := os.Stat(program)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s does not exist: %s", program, hint)
	case err != nil:
		return "", fmt.Errorf("looking for kube: %w", err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s is not a program: %s", program, hint)
	}
	return program, nil
}

// findRoot walks up from the working directory, which for a test is the
// directory of its package, to this module's go.mod.
func findRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("looking for the repository: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		ok, err := isRoot(dir)
		if err != nil {
			return "", fmt.Errorf("looking for the repository: %w", err)
		}
		if ok {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside the lanyard repository: set LANYARD_KUBE to the path of bin/kube", start)
		}
	}
}

func isRoot(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(dir, "go.mod"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == module {
			return true, nil
		}
	}
	return false, lines.Err()
}
