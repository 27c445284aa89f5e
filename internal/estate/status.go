package estate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lanyard-id/lanyard/internal/lab"
)

// statusKey is where an estate publishes its Status.
const statusKey = "estate"

// A Status tells where a running estate is.
type Status struct {
	PID        int       `json:"pid"`
	Since      time.Time `json:"since"`
	Node       string    `json:"node"`
	Kubeconfig string    `json:"kubeconfig"`
	Issuer     string    `json:"issuer"` // of service-account tokens
	Vault      string    `json:"vault"`  // URL
	Proxy      string    `json:"proxy"`  // address of the CONNECT proxy
	Env        Env       `json:"env,omitempty"`
}

// ReadStatus tells of the estate that is up in a state directory.
func ReadStatus(dir string) (Status, error) {
	s, err := lab.Status(dir)
	if errors.Is(err, lab.ErrNotRunning) {
		return Status{}, notUp(dir, err)
	}
	if err != nil {
		return Status{}, err
	}
	if s.Extra[statusKey] == "" {
		return Status{}, fmt.Errorf("the lab in %s is still starting (pid %d)", dir, s.Supervisor.PID)
	}
	var status Status
	if err := json.Unmarshal([]byte(s.Extra[statusKey]), &status); err != nil {
		return Status{}, fmt.Errorf("the state in %s is damaged: %w", dir, err)
	}
	status.PID, status.Since = s.Supervisor.PID, s.Started
	return status, nil
}

// Down ends the estate of a state directory, or removes what a killed one
// left. What the cloud holds stays.
func Down(ctx context.Context, dir string) error {
	if err := lab.Down(ctx, dir); errors.Is(err, lab.ErrNotRunning) {
		return notUp(dir, err)
	} else if err != nil {
		return err
	}
	return removeOwn(dir)
}

// What an estate keeps in its state directory beside the lab and the cloud.
const (
	toolsDir        = "bin"
	auditPolicyFile = "audit-policy.yaml"
)

// removeOwn removes these, and nothing else: the directory is one that a person
// chose, and may have held something of that name before.
func removeOwn(dir string) error {
	tools := filepath.Join(dir, toolsDir)
	err := removeLink(filepath.Join(tools, "kubectl"))
	_ = os.Remove(tools) // fails when somebody else keeps something there, as is their right
	file := filepath.Join(dir, auditPolicyFile)
	if text, readErr := os.ReadFile(file); readErr == nil && string(text) == auditPolicy {
		err = errors.Join(err, os.Remove(file))
	}
	return err
}

// removeLink refuses to remove anything but a symbolic link. That there is
// nothing is no error.
func removeLink(file string) error {
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSymlink:
		return fmt.Errorf("%s is not of a lab: choose another state directory", file)
	}
	return os.Remove(file)
}

func notUp(dir string, err error) error {
	return fmt.Errorf("%w: start one with \"lanyard lab up --state %s\"", err, dir)
}

// auditPolicy is what an estate's API server records unless told otherwise.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  verbs: [get, list, watch]
- level: None
  resources: [{group: coordination.k8s.io, resources: [leases]}]
- level: Metadata
`

func writeAuditPolicy(stateDir string) (string, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return "", fmt.Errorf("making the state directory: %w", err)
	}
	file := filepath.Join(stateDir, auditPolicyFile)
	if text, err := os.ReadFile(file); err == nil && string(text) != auditPolicy {
		return "", fmt.Errorf("%s is not of a lab: name it with --audit-policy, or choose another state directory", file)
	}
	return file, os.WriteFile(file, []byte(auditPolicy), 0o600)
}
