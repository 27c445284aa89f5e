package migrate

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/spf13/cobra"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/cmd/lanyard/cli"
	"github.com/lanyard-id/lanyard/internal/federated"
	"github.com/lanyard-id/lanyard/internal/migrate"
	"github.com/lanyard-id/lanyard/internal/migrate/move"
)

// flags are those of one command.
type flags struct {
	cluster cli.Cluster
	azure   cli.Azure
	options migrate.Options
	output  string

	all        bool
	workloads  []string
	proxy      string
	federation string
	audit      string
	offline    bool
	timeout    time.Duration
}

// scope adds the flags that say which workloads.
func (f *flags) scope(cmd *cobra.Command) {
	f.cluster.Add(cmd, "`namespace` of the workloads (default: the context's)")
	cmd.Flags().BoolVarP(&f.all, "all-namespaces", "A", false, "the workloads of all namespaces")
	cmd.Flags().StringArrayVar(&f.workloads, "workload", nil, "only this `KIND/NAME`, such as deployment/api; can be given again")
	_ = cmd.RegisterFlagCompletionFunc("workload", f.completeWorkload)
}

// planning adds the flags that say what to plan.
func (f *flags) planning(cmd *cobra.Command) {
	s, o := cmd.Flags(), &f.options
	s.StringVar(&f.proxy, "proxy", string(migrate.ProxyAuto), "who gets the proxy sidecar: auto, always or never")
	s.StringVar(&f.federation, "federation", string(migrate.FederationAzure), "who makes federated credentials: azure (this command) or controller")
	s.StringVar(&f.audit, "audit-log", "", "`file` with nmi's log, in place of the logs of its pods")
	s.StringVar(&o.Issuer, "issuer", "", "`URL` of the cluster's issuer (default: what the API server says)")
	s.StringVar(&o.Audience, "audience", workloadidentity.Audience, "`audience` of the pods' tokens, as the webhook's --audience has it")
	s.BoolVar(&o.ForceNamespaced, "force-namespaced", false, "bindings are for pods of their own namespace only, as nmi's --forceNamespaced")
	s.BoolVar(&o.AllowUnbounded, "allow-unbounded", false, "give up limits in time and to requests, which only nmi can keep")
	s.BoolVar(&o.AllowUnproven, "allow-unproven", false, "federate identities that nothing shows nmi to give")
	s.BoolVar(&o.CopyRBAC, "copy-rbac", false, "add a new service account to the role bindings of the old one")
	s.BoolVar(&o.RecreateJobs, "recreate-jobs", false, "delete unfinished Jobs and make them again: their work starts anew")
	s.BoolVar(&o.Finish, "finish", false, "take the label aadpodidbinding from what is migrated")
	s.BoolVar(&f.offline, "offline", false, "do not ask Azure: credentials that exist are not counted")
	cli.Fixed(cmd, "proxy", string(migrate.ProxyAuto), string(migrate.ProxyAlways), string(migrate.ProxyNever))
	cli.Fixed(cmd, "federation", string(migrate.FederationAzure), string(migrate.FederationController))
	_ = cmd.MarkFlagFilename("audit-log")
}

func (f *flags) waiting(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long to wait for each rollout and each credential")
}

// check reads what flags say, and refuses what they do not say together.
func (f *flags) check() error {
	for _, x := range []struct {
		flag, value string
		known       []string
	}{
		{"proxy", f.proxy, []string{"", "auto", "always", "never"}},
		{"federation", f.federation, []string{"", "azure", "controller"}},
	} {
		if !slices.Contains(x.known, x.value) {
			return cli.Usage("--%s=%s: use %s", x.flag, x.value, strings.Join(x.known[1:], ", "))
		}
	}
	f.options.Proxy, f.options.Federation = migrate.ProxyMode(f.proxy), migrate.FederationMode(f.federation)
	if f.all && len(f.workloads) > 0 {
		return cli.Usage("--workload names workloads of one namespace: give -n in place of -A")
	}
	f.options.TenantID = f.azure.Login().TenantID
	return nil
}

// mover connects to the cluster and, if that is wanted, to Azure.
func (f *flags) mover(cmd *cobra.Command, withAzure bool) (*move.Mover, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	cloud, err := f.azure.Cloud()
	if err != nil {
		return nil, err
	}
	f.options.Workloads = nil
	config, namespace, err := f.cluster.Config()
	if err != nil {
		return nil, err
	}
	if f.all {
		namespace = ""
	}
	for _, text := range f.workloads {
		r, err := migrate.ParseWorkload(text, namespace)
		if err != nil {
			return nil, cli.Usage("--workload: %w", err)
		}
		f.options.Workloads = append(f.options.Workloads, r)
	}
	f.options.Namespace, f.options.Authority = namespace, cloud.Authority
	config.QPS, config.Burst = 50, 100
	m, err := move.New(config)
	if err != nil {
		return nil, err
	}
	m.Authority, m.Resource, m.Timeout = cloud.Authority, cmp.Or(cloud.ManagerAudience, cloud.Manager), f.timeout
	m.Step = func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
	if !withAzure {
		return m, nil
	}
	login, err := f.azure.CheckedLogin()
	if err != nil {
		return nil, err
	}
	// Somebody waits, but a moment's throttling should not end a run halfway.
	base := cloud.Options("lanyard-migrate")
	base.Retry = policy.RetryOptions{MaxRetries: 4, TryTimeout: time.Minute, StatusCodes: []int{
		http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	}}
	credential, err := login.Credential(cloud, base)
	if err != nil {
		return nil, err
	}
	client := &federated.Client{Credential: credential, Cloud: cloud, Options: base}
	m.Azure, m.Writer = client, client
	return m, nil
}

// plan reads the cluster and makes a plan.
func (f *flags) plan(cmd *cobra.Command) (*move.Mover, migrate.Plan, error) {
	m, err := f.mover(cmd, !f.offline)
	if err != nil {
		return nil, migrate.Plan{}, err
	}
	if f.audit != "" {
		file, err := os.Open(f.audit)
		if err != nil {
			return nil, migrate.Plan{}, err
		}
		defer file.Close()
		m.Audit = file
	}
	ctx := cmd.Context()
	if f.options.Issuer == "" {
		if f.options.Issuer, err = m.Issuer(ctx); err != nil {
			return nil, migrate.Plan{}, err
		}
	}
	if cmd.Name() == "apply" {
		if err := m.Resume(ctx, f.options); err != nil {
			return nil, migrate.Plan{}, err
		}
	}
	w, err := m.Read(ctx, f.options)
	if err != nil {
		return nil, migrate.Plan{}, err
	}
	for _, r := range f.options.Workloads {
		if !w.Has(r) {
			return nil, migrate.Plan{}, fmt.Errorf("there is no %s", r)
		}
	}
	return m, migrate.Make(w, f.options), nil
}

// completeWorkload offers the workloads of the namespace.
func (f *flags) completeWorkload(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second) // somebody waits at a prompt
	defer cancel()
	config, namespace, err := f.cluster.Config()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	m, err := move.New(config)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names, err := m.Workloads(ctx, namespace)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
