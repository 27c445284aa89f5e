package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lanyard-id/lanyard/internal/estate"
)

// The test binary is the command itself, so that the scripts run what people
// run, with what `make build` put into bin.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lanyard": main, "kubectl-lanyard": main})
}

func TestScripts(t *testing.T) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range estate.Programs() {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			t.Fatalf("%v: run make build", err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("BIN", bin)
			// The scripts' own PATH first: "lanyard" is this test binary.
			e.Setenv("PATH", e.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"source":  source,
			"setfrom": setFrom,
			"nothing": nothing,
			"fetch":   fetch,
		},
	})
}

// source sets the exports of a file in the script's environment, as a shell's
// eval does.
func source(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: source FILE")
	}
	for _, line := range strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n") {
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok || !strings.HasPrefix(line, "export ") {
			ts.Fatalf("%s: %q is not an export", args[0], line)
		}
		value = strings.ReplaceAll(value, `'\''`, "\x00")
		value, path := strings.CutSuffix(value, `":$PATH"`)
		value = strings.ReplaceAll(strings.Trim(value, "'"), "\x00", "'")
		if path {
			value += ":" + ts.Getenv("PATH")
		}
		ts.Setenv(name, value)
	}
}

// nothing checks that no process has an open file, a working directory, an
// executable or an argument below the given directory, and that no mount and no
// cgroup is left of a lab.
func nothing(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: nothing DIR")
	}
	dir := ts.MkAbs(args[0])
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := leftOf(dir)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ts.Fatalf("%v", err)
		}
	}
}

func leftOf(dir string) error {
	var left []error
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, f := range commands {
		text, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(text), dir) {
			left = append(left, fmt.Errorf("process %s: %q", filepath.Base(filepath.Dir(f)), text))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), dir) {
		left = append(left, errors.New("a mount"))
	}
	return errors.Join(left...)
}

// fetch prints the status and the body that a URL answers to a client that
// trusts and uses what the script's environment says, as Go, curl or az would.
// Like those it does not use the proxy for 127.0.0.1. The certificate of the
// API server there is not the cloud's, and not what the scripts are about.
func fetch(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] fetch URL")
	}
	local := strings.HasPrefix(args[0], "https://127.0.0.1:")
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ts.ReadFile(ts.Getenv("SSL_CERT_FILE")))) {
		ts.Fatalf("SSL_CERT_FILE has no certificate")
	}
	proxy, err := url.Parse(ts.Getenv("HTTPS_PROXY"))
	ts.Check(err)
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		Proxy: func(*http.Request) (*url.URL, error) {
			if local {
				return nil, nil
			}
			return proxy, nil
		},
		TLSClientConfig:   &tls.Config{RootCAs: roots, InsecureSkipVerify: local, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}}
	res, err := client.Get(args[0])
	if err == nil {
		defer res.Body.Close()
		fmt.Fprintln(ts.Stdout(), res.Status)
		_, err = io.Copy(ts.Stdout(), res.Body)
	}
	if (err != nil) != neg {
		ts.Fatalf("fetch %s: %v", args[0], err)
	}
	if err != nil {
		fmt.Fprintln(ts.Stderr(), err)
	}
}

// setFrom sets NAME=VALUE as a file has it.
func setFrom(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: setfrom FILE")
	}
	name, value, ok := strings.Cut(strings.TrimSpace(ts.ReadFile(args[0])), "=")
	if !ok {
		ts.Fatalf("%s is not NAME=VALUE", args[0])
	}
	ts.Setenv(name, value)
}
