package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestALoginComesFromFlagsAndElseFromTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{"AZURE_TENANT_ID": "tenant", "AZURE_CLIENT_ID": "client", "AZURE_CLIENT_SECRET": "very secret", "AZURE_ENVIRONMENT_FILEPATH": ""} {
		t.Setenv(name, value)
	}
	var a Azure
	cmd := &cobra.Command{Use: "x"}
	a.Add(cmd)
	if help := cmd.UsageString(); strings.Contains(help, "very secret") || strings.Contains(help, `"tenant"`) || !strings.Contains(help, "default $AZURE_TENANT_ID") {
		t.Errorf("the help shows the environment, or not what holds without it:\n%s", help)
	}
	if err := cmd.ParseFlags([]string{"--auth-method=client_secret", "--client-id=mine"}); err != nil {
		t.Fatal(err)
	}
	l, err := a.CheckedLogin()
	if err != nil || l.TenantID != "tenant" || l.ClientID != "mine" || l.ClientSecret != "very secret" || strings.Contains(l.String(), "very secret") {
		t.Errorf("%v, %v", l, err)
	}
	of := Azure{SubscriptionTenant: true}
	if of.Add(&cobra.Command{Use: "x"}); of.Login().TenantID != "" {
		t.Errorf("the tenant is %s, and not the subscription's", of.Login().TenantID)
	}
	for _, args := range [][]string{{"--auth-method=guess"}, {"--auth-method=client_certificate"}, {"--azure-env=Nowhere"}} {
		var a Azure
		cmd := &cobra.Command{Use: "x"}
		a.Add(cmd)
		if err := cmd.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		_, login := a.CheckedLogin()
		_, cloud := a.Cloud()
		if err := errors.Join(login, cloud); err == nil || !errors.As(err, new(UsageError)) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
