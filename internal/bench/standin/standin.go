// Package standin holds the servers that the benchmark puts in the place of
// Azure's, each as a process of its own: just enough of the protocols for nmi
// and mic, with a latency that can be set, and nothing that would cost time of
// its own. They are not the local cloud, which checks every right.
//
//	Main metadata   the node's instance metadata service
//	Main bare       an http.Server that answers one recorded answer to everything
//	Main cloud      Entra's token endpoints and the machines of Azure Resource Manager, over TLS
package standin

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// A Config is the command line of a stand-in.
type Config struct {
	Listen   string // host:port
	Latency  time.Duration
	Answer   string // bare: file with the answer, see Recorded
	Cert     string // cloud: file with the certificate
	Key      string // cloud: file with its key
	BaseURL  string // cloud: how clients reach it
	ARMDelay time.Duration
}

// Args is the command line that Main reads.
func (c Config) Args(kind string) []string {
	return []string{
		kind, "--listen=" + c.Listen, "--latency=" + c.Latency.String(), "--answer=" + c.Answer, "--cert=" + c.Cert, "--key=" + c.Key, "--base-url=" + c.BaseURL, "--arm-latency=" + c.ARMDelay.String(),
	}
}

// Main runs one stand-in until ctx ends. It writes a line to stdout when it
// listens.
func Main(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return errors.New("which stand-in: metadata, bare or cloud")
	}
	var c Config
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&c.Listen, "listen", "", "")
	f.DurationVar(&c.Latency, "latency", 0, "")
	f.StringVar(&c.Answer, "answer", "", "")
	f.StringVar(&c.Cert, "cert", "", "")
	f.StringVar(&c.Key, "key", "", "")
	f.StringVar(&c.BaseURL, "base-url", "", "")
	f.DurationVar(&c.ARMDelay, "arm-latency", 0, "")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	var h http.Handler
	switch args[0] {
	case "metadata":
		h = c.metadata()
	case "bare":
		r, err := ReadRecorded(c.Answer)
		if err != nil {
			return err
		}
		h = r
	case "cloud":
		h = newCloud(c)
	default:
		return fmt.Errorf("unknown stand-in %q", args[0])
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "listening")
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if c.Cert != "" {
		err = s.ServeTLS(l, c.Cert, c.Key)
	} else {
		err = s.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// wait waits as long as an answer is to take; false means that nobody waits
// for it any more.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
