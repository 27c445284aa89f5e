package servingcert

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Files serve tls.crt and tls.key of a directory that someone else
// keeps, such as cert-manager. New files are picked up by the next handshake.
type Files struct {
	Dir string

	mu      sync.Mutex
	pair    *tls.Certificate
	written time.Time
}

// GetCertificate is for tls.Config. A pair that cannot be read leaves the one
// before in place: the two files of a pair are not written at one instant.
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cert, key := filepath.Join(f.Dir, "tls.crt"), filepath.Join(f.Dir, "tls.key")
	info, err := os.Stat(cert)
	if err == nil && f.pair != nil && info.ModTime().Equal(f.written) {
		return f.pair, nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	switch {
	case err == nil && info != nil:
		f.pair, f.written = &pair, info.ModTime()
	case f.pair == nil:
		return nil, fmt.Errorf("reading the serving certificate: %w", err)
	}
	return f.pair, nil
}

// Ready reports whether there is a certificate.
func (f *Files) Ready() error {
	_, err := f.GetCertificate(nil)
	return err
}
