package main

import (
	"context"
	"fmt"
	"os"
	_ "time/tzdata" // CronJobs with a time zone, on a machine without zone files

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/template"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl: users of a kubeconfig
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // the metrics that the real programs have
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

// An exitCode is the error of a component that has told the user why.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// A component runs with args, of which the first is its name, and owns the
// process: its signals, os.Args, stdout and stderr.
type component func(ctx context.Context, args []string) error

func findComponent(name string) (component, bool) {
	switch name {
	case "etcd":
		return runEtcd, true
	case "coredns":
		return runCoreDNS, true
	case "kubectl":
		return runKubectl, true
	case "kubelet":
		return command(kubelet.NewKubeletCommand), true
	case "kube-proxy":
		return command(func(context.Context) *cobra.Command { return proxy.NewProxyCommand() }), true
	case "kube-apiserver":
		return command(func(context.Context) *cobra.Command { return apiserver.NewAPIServerCommand() }), true
	case "kube-controller-manager":
		return command(func(context.Context) *cobra.Command { return kcm.NewControllerManagerCommand() }), true
	case "kube-scheduler":
		return command(func(context.Context) *cobra.Command { return scheduler.NewSchedulerCommand() }), true
	}
	return nil, false
}

func command(make func(context.Context) *cobra.Command) component {
	return func(ctx context.Context, args []string) error {
		c := make(ctx)
		c.SetArgs(args[1:])
		if code := cli.Run(c); code != 0 {
			return exitCode(code)
		}
		return nil
	}
}

func runKubectl(_ context.Context, args []string) error {
	os.Args = args // also for plugins and for the name in its messages
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err) // prints and exits as kubectl does
		return exitCode(1)
	}
	return nil
}

func runEtcd(_ context.Context, args []string) error {
	os.Args = args // its subcommands look there
	etcdmain.Main(args)
	return nil
}

// runCoreDNS serves the Corefile given with -conf, with the plugins that a
// cluster without an upstream resolver needs.
func runCoreDNS(_ context.Context, args []string) error {
	// The order in which plugins see a query, whatever the order in the
	// Corefile. hosts and template come before kubernetes: they answer for the
	// names of the local cloud.
	dnsserver.Directives = []string{"reload", "bind", "ready", "health", "errors", "log", "cache", "template", "hosts", "kubernetes"}
	os.Args = args
	coremain.Run()
	return nil
}
