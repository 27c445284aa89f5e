package arm_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/mic/arm"
)

func TestAChangedFileIsInForceWithoutARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "azure.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"tenantId":"11111111-2222-3333-4444-555555555555","aadClientId":"one","aadClientSecret":"s3cret"}`)
	var log bytes.Buffer
	now := time.Now()
	f := &arm.Files{
		Paths: []string{path},
		Load: func() (arm.Account, error) {
			data, err := os.ReadFile(path)
			if err != nil {
				return arm.Account{}, err
			}
			return arm.ParseAccount(data)
		},
		Now: func() time.Time { return now }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	if err := f.Open(); err != nil {
		t.Fatal(err)
	}
	first := f.Connection()
	is := func(step, want string) {
		t.Helper()
		if got := f.Connection().Assignee; got != want {
			t.Errorf("%s: it acts as %s, want %s", step, got, want)
		}
	}
	write(`{"tenantId":"11111111-2222-3333-4444-555555555555","aadClientId":"two","aadClientSecret":"s3cret"}`)
	is("within a second", "one")
	now = now.Add(time.Second)
	is("after a second", "two")
	if f.Connection() == first {
		t.Error("the connection is the same, and with it the tokens")
	}
	second := f.Connection()
	now = now.Add(time.Second)
	if f.Connection() != second {
		t.Error("without a change there is another connection")
	}
	write(`{"aadClientId":"three","aadClientSecret":"s3cret`)
	now = now.Add(time.Second)
	is("when the file is broken", "two")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Second)
	is("when the file is gone", "two")
	write(`{"tenantId":"11111111-2222-3333-4444-555555555555","aadClientId":"four","aadClientSecret":"s3cret"}`)
	now = now.Add(time.Second)
	is("when it is well again", "four")
	if n := strings.Count(log.String(), "cannot be used"); n != 2 {
		t.Errorf("%d complaints:\n%s", n, log.String())
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Error("the log shows the secret")
	}
}
