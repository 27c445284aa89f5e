package servingcert

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

var testNames = []string{"azure-wi-webhook-webhook-service.azure-workload-identity-system.svc", "127.0.0.1"}

func renewed(t *testing.T, p Policy, m keyMaterial, now time.Time) (keyMaterial, string) {
	t.Helper()
	m, reason, err := p.renew(m, now, testNames)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.serves(now, testNames); err != nil {
		t.Fatalf("renewed (%s) and of no use at %v: %v", reason, now, err)
	}
	return m, reason
}

// A decade and a half, visited at exactly the instants that next names: at each
// of them the served certificate is trusted by what an API server knew before.
func TestRenewalNeverServesWhatTheAPIServerDoesNotTrustYet(t *testing.T) {
	p := Policy{}.withDefaults()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	end := now.AddDate(25, 0, 0)
	m, reason := renewed(t, p, keyMaterial{}, now)
	if reason == "" {
		t.Fatal("an empty Secret needs no certificate")
	}
	var authorities, leaves int
	for now.Before(end) {
		next := p.next(m)
		if !next.After(now) {
			t.Fatalf("due at %v, asked at %v: the loop does not advance", next, now)
		}
		if _, reason := renewed(t, p, m, next.Add(-time.Second)); reason != "" {
			t.Fatalf("renewed (%s) before it was due", reason)
		}
		known := m.authorities // what the API server has read
		now = next
		m, reason = renewed(t, p, m, now)
		switch reason {
		case "the certificate authority is due":
			authorities++
		case "the serving certificate is due":
			leaves++
		case "":
		default:
			t.Fatalf("at %v: %s", now, reason)
		}
		before := keyMaterial{authorities: known, leaf: m.leaf}
		if err := before.serves(now, testNames); err != nil {
			t.Fatalf("at %v an API server that has not seen the change refuses: %v", now, err)
		}
		if len(m.authorities) > 3 {
			t.Fatalf("%d authorities are trusted", len(m.authorities))
		}
	}
	if authorities < 2 || leaves < 30 {
		t.Errorf("%d authorities and %d certificates in 25 years", authorities, leaves)
	}
}

func TestWhatIsOfNoUseIsReplacedAtOnce(t *testing.T) {
	p := Policy{}.withDefaults()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	good, _ := renewed(t, p, keyMaterial{}, now)
	other, _ := renewed(t, p, keyMaterial{}, now)
	tests := map[string]struct {
		material keyMaterial
		at       time.Time
		names    []string
		want     string
	}{
		"nothing is wrong":                       {good, now, testNames, ""},
		"the certificate has expired":            {good, now.AddDate(2, 0, 0), testNames, "has expired"},
		"a name is missing":                      {good, now, []string{"other.svc"}, "not other.svc"},
		"another authority signed it":            {keyMaterial{other.authorities, other.key, good.leaf}, now, testNames, "unknown authority"},
		"the clock is behind the certificate":    {good, now.Add(-2 * time.Hour), testNames, ""},
		"the clock is a little behind":           {good, now.Add(-time.Minute), testNames, ""},
		"there is no certificate at all":         {keyMaterial{authorities: good.authorities, key: good.key}, now, testNames, "none yet"},
		"everything has expired for years":       {good, now.AddDate(20, 0, 0), testNames, "has expired"},
		"an address is missing that is new":      {good, now, []string{"127.0.0.1", "10.0.0.1"}, "10.0.0.1"},
		"only some of the names are still asked": {good, now, []string{"127.0.0.1"}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, reason, err := p.renew(tc.material, tc.at, tc.names)
			if err != nil {
				t.Fatal(err)
			}
			if (tc.want == "") != (reason == "") || !strings.Contains(reason, tc.want) {
				t.Errorf("reason %q, want %q", reason, tc.want)
			}
			if err := got.serves(tc.at, tc.names); err != nil {
				t.Error(err)
			}
			if reason == "" && got.leaf.Leaf != tc.material.leaf.Leaf {
				t.Error("replaced without a reason")
			}
		})
	}
}

func TestTheSecretReadsBack(t *testing.T) {
	p := Policy{}.withDefaults()
	now := time.Now()
	m, _ := renewed(t, p, keyMaterial{}, now)
	p.CALifetime = time.Hour // the authority is due: two in the bundle
	m, _ = renewed(t, p, m, now.AddDate(9, 0, 0))
	data, err := m.data()
	if err != nil {
		t.Fatal(err)
	}
	back, err := parseMaterial(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.data()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.crt", "ca.key", "tls.crt", "tls.key"} {
		if len(data[name]) == 0 || string(data[name]) != string(again[name]) {
			t.Errorf("%s does not read back", name)
		}
	}
}

// azure-workload-identity v1.6 leaves RSA keys in the form of PKCS #1.
func TestTheSecretOfTheReplacedWebhookIsTakenOver(t *testing.T) {
	now := time.Now()
	caKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	leafKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := sign(&x509.Certificate{NotBefore: now.Add(-48 * time.Hour), NotAfter: now.AddDate(9, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := sign(&x509.Certificate{NotBefore: now.Add(-48 * time.Hour), NotAfter: now.AddDate(0, 6, 0), DNSNames: testNames[:1], ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, ca, leafKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	m, err := parseMaterial(map[string][]byte{
		"ca.crt": block("CERTIFICATE", ca.Raw), "ca.key": block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(caKey)),
		"tls.crt": block("CERTIFICATE", leaf.Raw), "tls.key": block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(leafKey)),
	})
	if err != nil {
		t.Fatal(err)
	}
	p := Policy{}.withDefaults()
	if _, reason, err := p.renew(m, now, testNames[:1]); reason != "" || err != nil {
		t.Errorf("a certificate in use is replaced: %s, %v", reason, err)
	}
	next, reason, err := p.renew(m, p.next(m), testNames[:1])
	if err != nil || reason != "the serving certificate is due" {
		t.Fatalf("%q, %v", reason, err)
	}
	if _, err := next.data(); err != nil {
		t.Error(err)
	}
}

func TestABrokenSecretIsRefusedByMember(t *testing.T) {
	m, _ := renewed(t, Policy{}.withDefaults(), keyMaterial{}, time.Now())
	for name, breakIt := range map[string]func(map[string][]byte){
		"ca.crt":  func(d map[string][]byte) { d["ca.crt"] = []byte("garbage") },
		"ca.key":  func(d map[string][]byte) { d["ca.key"] = d["tls.key"] },
		"tls.crt": func(d map[string][]byte) { delete(d, "tls.crt") },
	} {
		data, err := m.data()
		if err != nil {
			t.Fatal(err)
		}
		breakIt(data)
		if _, err := parseMaterial(data); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
