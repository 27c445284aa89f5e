package estate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

func removeOwn(dir string) error {
	for _, name := range []string{toolsDir, auditPolicyFile} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
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
	return file, os.WriteFile(file, []byte(auditPolicy), 0o600)
}
