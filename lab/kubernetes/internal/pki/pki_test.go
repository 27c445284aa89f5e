package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func write(t *testing.T, dir string, at time.Time) Cluster {
	t.Helper()
	c := Cluster{
		Dir: dir, Server: "https://127.0.0.1:6443", NodeServer: "https://10.250.0.1:6443",
		IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 250, 0, 1)}, Nodes: []Node{{Name: "node1", IP: net.IPv4(10, 250, 0, 2)}},
	}
	if err := c.Write(at); err != nil {
		t.Fatal(err)
	}
	return c
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// verify checks a certificate of c against a bundle of authorities.
func verify(t *testing.T, c Cluster, name, bundle string, usage x509.ExtKeyUsage, host string) error {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(read(t, c.File(bundle))) {
		t.Fatalf("%s holds no certificate", bundle)
	}
	pair, err := tls.X509KeyPair(read(t, c.File(name+".crt")), read(t, c.File(name+".key")))
	if err != nil {
		t.Fatal(err)
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: host, CurrentTime: now})
	return err
}

func TestCertificatesAreAcceptedWhereTheyAreMeantAndNowhereElse(t *testing.T) {
	c := write(t, t.TempDir(), now)
	const server, client = x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	for name, test := range map[string]struct {
		cert, bundle string
		usage        x509.ExtKeyUsage
		host         string
		ok           bool
	}{
		"the API server under its address":                           {"kube-apiserver", "ca.crt", server, "10.250.0.1", true},
		"the API server under its name in the cluster":               {"kube-apiserver", "ca.crt", server, "kubernetes.default.svc", true},
		"the API server under another name":                          {"kube-apiserver", "ca.crt", server, "example.com", false},
		"the API server as a client":                                 {"kube-apiserver", "ca.crt", client, "", false},
		"a kubelet as a server":                                      {"kubelet-serving-node1", "ca.crt", server, "10.250.0.2", true},
		"a kubelet as a client":                                      {"kubelet-node1", "client-ca.crt", client, "", true},
		"a kubelet's client certificate as a server":                 {"kubelet-node1", "ca.crt", server, "", false},
		"the administrator":                                          {"admin", "client-ca.crt", client, "", true},
		"the administrator without the local accounts' authority":    {"admin", "ca.crt", client, "", false},
		"the scheduler without the local accounts' authority":        {"kube-scheduler", "ca.crt", client, "", true},
		"the aggregator in front of extension servers":               {"front-proxy-client", "front-proxy-ca.crt", client, "", true},
		"the aggregator's certificate as a user of the API server":   {"front-proxy-client", "client-ca.crt", client, "", false},
		"a user's certificate as the aggregator (would be any user)": {"admin", "front-proxy-ca.crt", client, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := verify(t, c, test.cert, test.bundle, test.usage, test.host); (err == nil) != test.ok {
				t.Errorf("verification: %v, want accepted = %v", err, test.ok)
			}
		})
	}
}

func TestSecondStartKeepsWhatOthersHold(t *testing.T) {
	dir := t.TempDir()
	c := write(t, dir, now)
	kept := []string{"ca.crt", "ca.key", "local-accounts-ca.key", "front-proxy-ca.crt", "sa.key", "sa.pub", "client-ca.crt"}
	before := map[string][]byte{}
	for _, f := range append(kept, "kube-apiserver.crt") {
		before[f] = read(t, c.File(f))
	}
	write(t, dir, now.Add(24*time.Hour))
	for _, f := range kept {
		if !bytes.Equal(read(t, c.File(f)), before[f]) {
			t.Errorf("%s changed", f)
		}
	}
	if bytes.Equal(read(t, c.File("kube-apiserver.crt")), before["kube-apiserver.crt"]) {
		t.Error("the serving certificate was not renewed")
	}
}

func TestABundleOfPublicKeysSurvivesAStart(t *testing.T) {
	dir := t.TempDir()
	c := write(t, dir, now)
	bundle := slices.Concat(read(t, c.File("sa.pub")), read(t, c.File("sa.pub")))
	if err := os.WriteFile(c.File("sa.pub"), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, dir, now)
	if !bytes.Equal(read(t, c.File("sa.pub")), bundle) {
		t.Error("a start changed sa.pub, in the middle of a rotation")
	}
	if err := os.Remove(c.File("sa.pub")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, now)
	if got := read(t, c.File("sa.pub")); len(got) == 0 || len(got) >= len(bundle) {
		t.Errorf("a lost sa.pub is made anew: %d bytes", len(got))
	}
}

func TestDamagedDirectoryIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		damage func(c Cluster) error
		at     time.Time
		want   string
	}{
		"the key of an authority is lost":    {func(c Cluster) error { return os.Remove(c.File("ca.key")) }, now, "remove both files"},
		"key and certificate do not match":   {func(c Cluster) error { return os.Rename(c.File("front-proxy-ca.key"), c.File("ca.key")) }, now, "ca.crt"},
		"the authority has expired":          {func(Cluster) error { return nil }, now.Add(authorityLifetime + time.Hour), "expired"},
		"an authority is a leaf certificate": {func(c Cluster) error { return renamePair(c, "admin", "ca") }, now, "not a certificate authority"},
		"the signing key is no PEM file":     {func(c Cluster) error { return os.WriteFile(c.File("sa.key"), []byte("x"), 0o600) }, now, "sa.key"},
	} {
		t.Run(name, func(t *testing.T) {
			c := write(t, t.TempDir(), now)
			if err := test.damage(c); err != nil {
				t.Fatal(err)
			}
			if err := c.Write(test.at); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want it to contain %q", err, test.want)
			}
		})
	}
}

func renamePair(c Cluster, from, to string) error {
	if err := os.Rename(c.File(from+".crt"), c.File(to+".crt")); err != nil {
		return err
	}
	return os.Rename(c.File(from+".key"), c.File(to+".key"))
}

func TestOnlyTheOwnerReadsTheFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, now)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestKubeconfigsCarryAllTheyNeed(t *testing.T) {
	c := write(t, t.TempDir(), now)
	for name, test := range map[string]struct{ server, user string }{
		"admin":         {c.Server, "lanyard:admin"},
		"kubelet-node1": {c.NodeServer, "system:node:node1"},
		"kube-proxy":    {c.NodeServer, "system:kube-proxy"},
		"coredns":       {c.NodeServer, UserCoreDNS},
	} {
		config, err := clientcmd.RESTConfigFromKubeConfig(read(t, c.Kubeconfig(name)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		block, _ := pem.Decode(config.CertData)
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if config.Host != test.server || cert.Subject.CommonName != test.user || len(config.CAData) == 0 || len(config.KeyData) == 0 {
			t.Errorf("%s: server %s, user %s, %d bytes of CA", name, config.Host, cert.Subject.CommonName, len(config.CAData))
		}
	}
}
