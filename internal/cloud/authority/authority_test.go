package authority

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"testing"
	"time"

	"github.com/lanyard-id/lanyard/internal/cloud/state"
)

func TestAuthorityIsConstrainedToItsNames(t *testing.T) {
	db, err := state.Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ca, err := Open(db, []string{"login.microsoftonline.com", "vault.azure.net", "*.vault.azure.net"})
	if err != nil {
		t.Fatal(err)
	}
	cert := ca.Root()
	if years := time.Until(cert.NotAfter).Hours() / 24 / 365; years < 9.9 || !cert.IsCA || !cert.MaxPathLenZero || !cert.PermittedDNSDomainsCritical {
		t.Errorf("certificate: %.1f years, %+v", years, cert.Subject)
	}
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve.Params().BitSize != 256 {
		t.Errorf("key is %T", cert.PublicKey)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	// What the authority's key would sign for somebody who stole it.
	for name, tt := range map[string]struct {
		names []string
		ok    bool
	}{
		"login.microsoftonline.com":     {[]string{"login.microsoftonline.com"}, true},
		"demo.vault.azure.net":          {[]string{"demo.vault.azure.net"}, true},
		"example.com":                   {[]string{"example.com"}, false},
		"microsoftonline.com":           {[]string{"microsoftonline.com"}, false},
		"evillogin.microsoftonline.com": {[]string{"evillogin.microsoftonline.com"}, false},
	} {
		stolen := &Authority{cert: ca.cert, key: ca.key, names: tt.names}
		c, err := stolen.Certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); (err == nil) != tt.ok {
			t.Errorf("certificate for %s: %v, want accepted: %v", name, err, tt.ok)
		}
	}
	again, err := ca.Certificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	if other, _ := ca.Certificate(&tls.ClientHelloInfo{}); other != again {
		t.Error("a new server certificate for every handshake")
	}
	leaf := again.Leaf
	ca.server = &tls.Certificate{Leaf: &x509.Certificate{NotAfter: time.Now().Add(29 * 24 * time.Hour)}}
	if renewed, err := ca.Certificate(&tls.ClientHelloInfo{}); err != nil || renewed.Leaf.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
		t.Errorf("an old server certificate was not renewed: %v", err)
	}
}
