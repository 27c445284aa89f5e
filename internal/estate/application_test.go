package estate

import (
	"log/slog"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// The applications of the seed, and those that are made later, keep what they prove themselves with.
func TestApplicationsKeepTheirCredentials(t *testing.T) {
	config := CloudConfig{StateDir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	var before [3]Credential
	for round := range 2 {
		c, err := OpenCloud(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		var now [3]Credential
		if now[0], err = c.Credential(PasswordPrincipal); err != nil || now[0].Password == "" || now[0].PEM != "" || now[0].TenantID != c.Tenant.ID {
			t.Errorf("%s: %+v, %v", PasswordPrincipal, now[0], err)
		}
		if now[1], err = c.Credential(CertPrincipal); err != nil || now[1].PEM == "" || now[1].Password != "" {
			t.Errorf("%s: %+v, %v", CertPrincipal, now[1], err)
		}
		pfx, err := now[1].PKCS12("pw")
		if err != nil {
			t.Fatal(err)
		}
		if certs, _, err := azidentity.ParseCertificates(pfx, []byte("pw")); err != nil || len(certs) != 1 {
			t.Errorf("PKCS#12: %d certificates, %v", len(certs), err)
		}
		for range 2 {
			if now[2], err = c.EnsureApplication(t.Context(), "later", false); err != nil || now[2].Password == "" {
				t.Errorf("later: %+v, %v", now[2], err)
			}
		}
		if _, err := c.Credential("nobody"); err == nil {
			t.Error("an application that there is not has a credential")
		}
		if round == 1 && now != before {
			t.Error("a restart changed a credential")
		}
		before = now
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
