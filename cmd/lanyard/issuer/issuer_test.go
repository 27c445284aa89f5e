package issuer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/issuer"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

// The test binary is the command itself.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lanyard": func() {
		root := &cobra.Command{Use: "lanyard", SilenceErrors: true, SilenceUsage: true}
		root.AddCommand(Command("lanyard"), JWKSCommand("lanyard"))
		err := root.Execute()
		var code cli.ExitCode
		var usage cli.UsageError
		switch {
		case err == nil:
			return
		case errors.As(err, &code):
			os.Exit(int(code))
		}
		fmt.Fprintf(os.Stderr, "lanyard: %v\n", err)
		if errors.As(err, &usage) {
			os.Exit(2)
		}
		os.Exit(1)
	}})
}

var cluster = labtest.Cluster{Args: []string{"--service-account-issuer=https://oidc.lanyard.test/cluster/"}}

func TestScripts(t *testing.T) {
	kubeconfig := cluster.Kubeconfig(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("KUBECONFIG", kubeconfig)
			e.Setenv("KEYS", filepath.Join(cluster.Dir(t), "pki"))
			return nil
		},
	})
}

func TestARenewedCertificateIsServedWithoutARestart(t *testing.T) {
	dir := t.TempDir()
	c := &certificate{cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key")}
	if _, err := c.get(nil); err == nil {
		t.Fatal("a certificate that is not there is served")
	}
	writePair(t, c, 1)
	docs := filepath.Join(dir, "docs")
	keys, err := issuer.ReadKeys(filepath.Join(cluster.Dir(t), "pki", "sa.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.Publish(t.Context(), issuer.Directory{Path: docs}, issuer.Documents{Issuer: "https://localhost/x", Keys: keys}, issuer.Permission{}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- serve(ctx, tls.NewListener(l, &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}),
			&issuer.Server{Source: issuer.Folder{Directory: issuer.Directory{Path: docs}}, Logger: slog.New(slog.DiscardHandler)})
	}()
	serial := func() (n int64) {
		t.Helper()
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			n = s.PeerCertificates[0].SerialNumber.Int64()
			return nil
		}}}}
		labtest.Eventually(t, t.Context(), func() error {
			res, err := client.Get("https://" + l.Addr().String() + "/x/" + issuer.KeysPath)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 || len(body) == 0 {
				return fmt.Errorf("%d %s %w", res.StatusCode, body, err)
			}
			return nil
		})
		return n
	}
	if n := serial(); n != 1 {
		t.Errorf("certificate %d is served", n)
	}
	writePair(t, c, 2)
	if n := serial(); n != 2 {
		t.Errorf("certificate %d is served after the renewal", n)
	}
	if err := os.WriteFile(c.key, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := serial(); n != 2 {
		t.Errorf("certificate %d is served when the next cannot be read", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func writePair(t *testing.T, c *certificate, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	stamp := time.Now().Add(time.Duration(serial) * time.Second) // whatever the file system's clock can tell apart
	for name, block := range map[string]*pem.Block{c.cert: {Type: "CERTIFICATE", Bytes: der}, c.key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := errors.Join(os.WriteFile(name, pem.EncodeToMemory(block), 0o600), os.Chtimes(name, stamp, stamp)); err != nil {
			t.Fatal(err)
		}
	}
}
