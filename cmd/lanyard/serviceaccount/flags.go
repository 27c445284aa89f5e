package serviceaccount

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/arm"
	"github.com/lanyard-id/lanyard/internal/azure"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/serviceaccount"
)

// flags are those of one command.
type flags struct {
	options serviceaccount.Options
	azure   cli.Azure
	cluster cli.Cluster

	subscriptionID string
	identityName   string
	identityGroup  string
	output         string
	timeout        time.Duration
}

// add adds the flags that a phase needs, or with "" those of all.
func (f *flags) add(cmd *cobra.Command, v serviceaccount.Verb, phase string) {
	s, o := cmd.Flags(), &f.options
	is := func(phases ...string) bool {
		for _, p := range phases {
			if phase == "" || phase == p {
				return true
			}
		}
		return false
	}
	s.StringVar(&o.Name, "service-account-name", "", "`name` of the service account")
	s.StringVar(&o.Namespace, "service-account-namespace", "default", "`namespace` of the service account; -n is as good")
	s.StringVar(&o.Issuer, "service-account-issuer-url", "", "`URL` of the cluster's issuer, as its tokens say it")
	_ = cmd.RegisterFlagCompletionFunc("service-account-name", f.completeNames(true)) // these fail only for flags that do not exist
	_ = cmd.RegisterFlagCompletionFunc("service-account-namespace", f.completeNames(false))
	if v == serviceaccount.Create && is(serviceaccount.PhaseAccount) {
		s.DurationVar(&o.Expiration, "service-account-token-expiration", time.Hour, "how long the pods' tokens are good, 1h to 24h")
	}
	if v == serviceaccount.Create && is(serviceaccount.PhaseFederated) {
		s.StringVar(&o.Audience, "service-account-token-audience", federated.Audience, "`audience` of the pods' tokens, as the webhook's --audience has it")
	}
	if is(serviceaccount.PhaseApplication, serviceaccount.PhaseAccount, serviceaccount.PhaseFederated, serviceaccount.PhaseRoleAssignment) {
		s.StringVar(&o.ApplicationName, "aad-application-name", "", "display `name` of the application (default NAMESPACE-NAME-HASH of the service account and the issuer)")
		s.StringVar(&o.ApplicationClientID, "aad-application-client-id", "", "client `id` of the application")
		s.StringVar(&o.ApplicationObjectID, "aad-application-object-id", "", "object `id` of the application")
	}
	if is(serviceaccount.PhaseIdentity, serviceaccount.PhaseAccount, serviceaccount.PhaseFederated, serviceaccount.PhaseRoleAssignment) {
		s.StringVar(&f.identityName, "managed-identity-name", "", "`name` of a user-assigned managed identity, in place of an application")
		s.StringVar(&f.identityGroup, "managed-identity-resource-group", "", "its resource `group`")
		s.StringVar(&o.IdentityID, "managed-identity-resource-id", "", "its resource `id`, in place of name and resource group")
		if v == serviceaccount.Create && is(serviceaccount.PhaseIdentity) {
			s.StringVar(&o.IdentityLocation, "managed-identity-location", "", "`region` to create it in (default that of its resource group)")
		}
	}
	if is(serviceaccount.PhaseRoleAssignment) {
		s.StringVar(&o.PrincipalName, "service-principal-name", "", "display `name` of the service principal that gets the role (default that of the identity)")
		s.StringVar(&o.PrincipalObjectID, "service-principal-object-id", "", "its object `id`")
		if v == serviceaccount.Create {
			s.StringVar(&o.Scope, "azure-scope", "", "resource `id` of what the role is for")
			s.StringVar(&o.Role, "azure-role", "", "`role` by name or GUID")
		} else {
			s.StringVar(&o.RoleAssignment, "role-assignment-id", "", "resource `id` of the role assignment (default all of the identity that create made in the subscription)")
		}
	}
	s.BoolVar(&o.DryRun, "dry-run", false, "only say what would be done")
	s.DurationVar(&f.timeout, "timeout", 10*time.Minute, "give up after this time")

	f.azure.SubscriptionTenant = true
	f.azure.Add(cmd)
	s.StringVarP(&f.subscriptionID, "subscription-id", "s", "", "`subscription` (default $AZURE_SUBSCRIPTION_ID, or az's)")
	f.cluster.Add(cmd, "`namespace` of the service account")
	cli.Output(cmd, &f.output, "json")
}

// namespace is that of the service account.
func (f *flags) namespace(cmd *cobra.Command) string {
	if n := cmd.Flags().Lookup("namespace"); n.Changed && !cmd.Flags().Changed("service-account-namespace") {
		return n.Value.String()
	}
	return f.options.Namespace
}

// complete fills in what follows from the environment and from other flags. It
// asks nobody.
func (f *flags) complete(cmd *cobra.Command) error {
	f.options.Namespace = f.namespace(cmd)
	f.subscriptionID = cmp.Or(f.subscriptionID, os.Getenv("AZURE_SUBSCRIPTION_ID"))
	if _, err := f.azure.Cloud(); err != nil {
		return err
	}
	if s := f.subscriptionID; s != "" {
		if _, err := uuid.Parse(s); err != nil {
			return cli.Usage("--subscription-id %q is not a GUID", s)
		}
	}
	if f.identityName == "" && f.identityGroup == "" {
		return nil
	}
	switch {
	case f.options.IdentityID != "":
		return cli.Usage("--managed-identity-resource-id says all: leave out --managed-identity-name and --managed-identity-resource-group")
	case f.identityName == "":
		return cli.Usage("--managed-identity-name is required")
	case f.identityGroup == "":
		return cli.Usage("--managed-identity-resource-group is required")
	}
	subscription, err := f.subscription()
	if err != nil {
		return err
	}
	f.options.IdentityID = azure.Group(subscription, f.identityGroup).Resource(azure.TypeManagedIdentity, f.identityName).String()
	return nil
}

// subscription is the flag's or the environment's, else az's.
func (f *flags) subscription() (string, error) {
	if f.subscriptionID != "" {
		return f.subscriptionID, nil
	}
	if id, err := azure.ParseResourceID(f.options.IdentityID); err == nil && id.SubscriptionID != "" {
		return id.SubscriptionID, nil
	}
	c, err := f.azure.Cloud()
	if err != nil {
		return "", err
	}
	dir := os.Getenv("AZURE_CONFIG_DIR")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", errors.New("which subscription? Give --subscription-id")
		}
		dir = filepath.Join(home, ".azure")
	}
	return arm.DefaultSubscription(dir, c)
}

// retries are those of requests to Azure: somebody waits, but a moment's
// throttling should not end a run halfway.
const (
	maxRetries = 4
	tryTimeout = time.Minute
)

func (f *flags) connect(ctx context.Context) (*serviceaccount.Azure, error) {
	c, err := f.azure.Cloud()
	if err != nil {
		return nil, err
	}
	subscription, err := f.subscription()
	if err != nil {
		return nil, err
	}
	base := c.Options("lanyard")
	base.Retry = policy.RetryOptions{MaxRetries: maxRetries, TryTimeout: tryTimeout}
	login := f.azure.Login()
	login.SubscriptionID = subscription
	if login.TenantID == "" {
		if login.TenantID, err = arm.TenantOf(ctx, c, base, subscription); err != nil {
			return nil, fmt.Errorf("%w; or give --tenant-id", err)
		}
	}
	credential, err := login.Credential(c, base)
	if err != nil {
		return nil, err
	}
	return &serviceaccount.Azure{Cloud: c, Credential: credential, TenantID: login.TenantID, SubscriptionID: subscription, Options: base}, nil
}
