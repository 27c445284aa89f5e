package controlplane

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/lanyard-id/lanyard/lab/kubernetes/internal/pki"
)

// apiserverArgs returns the command line of kube-apiserver.
func apiserverArgs(c Config, files pki.Cluster, etcd string) []string {
	jwks := c.JWKSURI
	if jwks == "" {
		// Only here a slash at the end of the issuer does not matter.
		jwks = strings.TrimSuffix(c.Issuers[0], "/") + "/openid/v1/jwks"
	}
	args := []string{
		"--bind-address=" + c.Bind.String(),
		"--etcd-servers=" + etcd,
		"--client-ca-file=" + files.File("client-ca.crt"),
		"--tls-cert-file=" + files.File("kube-apiserver.crt"),
		"--tls-private-key-file=" + files.File("kube-apiserver.key"),
		"--kubelet-certificate-authority=" + files.File("ca.crt"),
		"--kubelet-client-certificate=" + files.File("kube-apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + files.File("kube-apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + files.File("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + files.File("front-proxy-client.crt"),
		"--proxy-client-key-file=" + files.File("front-proxy-client.key"),
		"--service-account-jwks-uri=" + jwks,
		"--service-account-key-file=" + files.File("sa.pub"),
		"--service-account-signing-key-file=" + files.File("sa.key"),
		"--service-cluster-ip-range=" + ServiceCIDR,
		"--allow-privileged=true",
		"--enable-admission-plugins=NodeRestriction",
		"--profiling=false",
		// Otherwise clients that watch hold up the end for a minute.
		"--shutdown-send-retry-after=true",
	}
	for _, issuer := range c.Issuers {
		args = append(args, "--service-account-issuer="+issuer)
	}
	if len(c.Audiences) > 0 {
		args = append(args, "--api-audiences="+strings.Join(c.Audiences, ","))
	}
	if ip := c.advertised(); ip != nil {
		args = append(args, "--advertise-address="+ip.String())
	} else {
		// The endpoint of the kubernetes Service may not be a loopback address.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	if c.AuditPolicyFile != "" {
		args = append(args, "--audit-policy-file="+c.AuditPolicyFile, "--audit-log-path="+c.AuditLogPath)
	}
	switch {
	case c.AuthenticationConfig != "":
		args = append(args, "--authentication-config="+c.AuthenticationConfig)
	case !c.overrides("authentication-config", "anonymous-auth"):
		args = append(args, "--anonymous-auth=false")
	}
	switch {
	case c.AuthorizationConfig != "":
		args = append(args, "--authorization-config="+c.AuthorizationConfig)
	case !c.overrides("authorization-config", "authorization-mode"):
		args = append(args, "--authorization-mode=Node,RBAC")
	}
	for _, a := range c.APIServerArgs {
		args = append(args, "--"+a)
	}
	return args
}

// overrides reports whether --apiserver-arg sets one of the flags, with which
// our own choice would be in conflict.
func (c *Config) overrides(flags ...string) bool {
	for _, a := range c.APIServerArgs {
		if name, _, _ := strings.Cut(a, "="); slices.Contains(flags, name) {
			return true
		}
	}
	return false
}

// newAPIServer returns a function that serves on l until its context ends.
// Wrong flags and files are found before it returns.
func newAPIServer(ctx context.Context, l net.Listener, args []string) (func(context.Context) error, error) {
	o := options.NewServerRunOptions()
	if err := parse(o.Flags(), args); err != nil {
		return nil, err
	}
	o.SecureServing.Listener = l
	o.SecureServing.BindPort = l.Addr().(*net.TCPAddr).Port
	if err := o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("setting feature gates: %w", err)
	}
	completed, err := o.Complete(ctx)
	if err != nil {
		return nil, err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return nil, utilerrors.NewAggregate(errs)
	}
	return func(ctx context.Context) error { return app.Run(ctx, completed) }, nil
}

// parse reads args into a component's own flags. The components' commands are
// not used: each of them wants to own the process's signals.
func parse(sets cliflag.NamedFlagSets, args []string) error {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	for _, set := range sets.FlagSets {
		fs.AddFlagSet(set)
	}
	return fs.Parse(args)
}
