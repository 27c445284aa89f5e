package cli

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/internal/arm"
)

// Azure are the flags that say which cloud, and as whom to sign in to it. What
// they leave open comes from the environment.
type Azure struct {
	// SubscriptionTenant says that the tenant without --tenant-id is that of the
	// subscription, as it is azwi's, and not $AZURE_TENANT_ID.
	SubscriptionTenant bool

	environment string
	login       arm.Login
}

// AddCloud adds --azure-env alone, for a command that does not sign in.
func (a *Azure) AddCloud(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.environment, "azure-env", arm.Public, "`cloud`; "+arm.Stack+" is the one that the file of "+arm.EnvironmentFile+" describes")
	Fixed(cmd, "azure-env", arm.Names()...)
}

// Add adds --azure-env and the flags of a login.
func (a *Azure) Add(cmd *cobra.Command) {
	a.AddCloud(cmd)
	tenant := "$AZURE_TENANT_ID"
	if a.SubscriptionTenant {
		tenant = "the subscription's"
	}
	f := cmd.Flags()
	f.StringVar(&a.login.Method, "auth-method", arm.MethodCLI, "how to sign in to Azure: "+alternatives(arm.Methods()))
	f.StringVar(&a.login.TenantID, "tenant-id", "", "`tenant` (default "+tenant+")")
	f.StringVar(&a.login.ClientID, "client-id", "", "client `id` to sign in as (default $AZURE_CLIENT_ID)")
	f.StringVar(&a.login.ClientSecret, "client-secret", "", "its `secret`; $AZURE_CLIENT_SECRET keeps it out of the list of processes")
	f.StringVar(&a.login.Certificate, "certificate-path", "", "its certificate: a `file`, PEM or PKCS #12")
	f.StringVar(&a.login.PrivateKey, "private-key-path", "", "the certificate's key: a `file`, if the certificate's does not have it")
	Fixed(cmd, "auth-method", arm.Methods()...)
	for _, name := range []string{"certificate-path", "private-key-path"} {
		_ = cmd.MarkFlagFilename(name) // fails only for a flag that does not exist
	}
}

// Cloud is the cloud that --azure-env names.
func (a *Azure) Cloud() (arm.Cloud, error) {
	c, err := arm.Find(a.environment, os.Getenv)
	if err != nil {
		return c, Usage("--azure-env: %w", err)
	}
	return c, nil
}

// Login is as whom to sign in. Whether that is enough is for its Check to say.
func (a *Azure) Login() arm.Login {
	l := a.login
	if !a.SubscriptionTenant {
		l.TenantID = cmp.Or(l.TenantID, os.Getenv("AZURE_TENANT_ID"))
	}
	l.ClientID = cmp.Or(l.ClientID, os.Getenv("AZURE_CLIENT_ID"))
	l.ClientSecret = cmp.Or(l.ClientSecret, os.Getenv("AZURE_CLIENT_SECRET"))
	return l
}

// CheckedLogin is Login, if nothing is missing.
func (a *Azure) CheckedLogin() (arm.Login, error) {
	l := a.Login()
	if err := l.Check(); err != nil {
		return l, Usage("%w", err)
	}
	return l, nil
}

// Fixed completes a flag with values.
func Fixed(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that does not exist
}
