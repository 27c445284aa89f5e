package webhook

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestVersionsWithNativeSidecars(t *testing.T) {
	for text, want := range map[string]struct {
		native bool
		err    string
	}{
		`{"major":"1","minor":"31"}`:     {},
		`{"major":"1","minor":"32"}`:     {native: true},
		`{"major":"1","minor":"36+"}`:    {native: true},
		`{"major":"1","minor":"31-gke"}`: {},
		`{"major":"2","minor":"0"}`:      {err: "not a version of Kubernetes 1"},
		`{"major":"1","minor":""}`:       {err: "not a version of Kubernetes 1"},
		`{}`:                             {err: "not a version of Kubernetes 1"},
		`<html>`:                         {err: "decoding /version"},
	} {
		v := &ServerVersion{Get: func(context.Context) ([]byte, error) { return []byte(text), nil }}
		err := v.ask(t.Context())
		if v.NativeSidecars() != want.native || want.err == "" && err != nil || want.err != "" && (err == nil || !strings.Contains(err.Error(), want.err)) {
			t.Errorf("%s: native %v, %v", text, v.NativeSidecars(), err)
		}
		if ready := v.Ready(); (ready == nil) != (want.err == "") {
			t.Errorf("%s: ready: %v", text, ready)
		}
	}
}

func TestAnUpgradeOfTheAPIServerIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		answer, failure := "", errors.New("connection refused")
		v := &ServerVersion{
			Get:    func(context.Context) ([]byte, error) { return []byte(answer), failure },
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- v.Run(ctx) }()
		synctest.Wait()
		if v.Ready() == nil || !strings.Contains(log.String(), "connection refused") {
			t.Errorf("ready: %v, log %s", v.Ready(), &log)
		}
		answer, failure = `{"major":"1","minor":"31"}`, nil
		<-time.After(2 * firstVersion)
		if v.Ready() != nil || v.NativeSidecars() {
			t.Errorf("1.31: ready %v, native %v", v.Ready(), v.NativeSidecars())
		}
		answer = `{"major":"1","minor":"32"}`
		<-time.After(2 * nextVersion)
		if !v.NativeSidecars() {
			t.Error("1.32 was not noticed")
		}
		failure = errors.New("away")
		<-time.After(2 * nextVersion)
		if v.Ready() != nil || !v.NativeSidecars() {
			t.Error("an API server that is away is forgotten")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
