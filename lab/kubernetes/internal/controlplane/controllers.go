package controlplane

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	controllermanager "k8s.io/controller-manager/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kcmoptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"

	"github.com/lanyard-id/lanyard/lab/kubernetes/internal/pki"
)

func controllerManagerArgs(c Config, files pki.Cluster) []string {
	kubeconfig := files.Kubeconfig("kube-controller-manager")
	args := []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--secure-port=0", // no metrics or health endpoint
		"--leader-elect=false",
		"--service-account-private-key-file=" + files.File("sa.key"),
		"--root-ca-file=" + files.File("ca.crt"),
		"--use-service-account-credentials",
		"--cluster-signing-cert-file=" + files.File("ca.crt"),
		"--cluster-signing-key-file=" + files.File("ca.key"),
		"--allocate-node-cidrs", "--cluster-cidr=" + PodCIDR, "--service-cluster-ip-range=" + ServiceCIDR,
		// It creates this directory; the default is in /usr.
		"--flex-volume-plugin-dir=" + filepath.Join(c.Dir, "volume-plugins"),
		// With the defaults it throttles itself for seconds while it makes the
		// controllers' own ServiceAccounts.
		"--kube-api-qps=500", "--kube-api-burst=1000",
	}
	if len(c.Controllers) > 0 {
		args = append(args, "--controllers="+strings.Join(c.Controllers, ","))
	}
	return args
}

// newControllerManager returns a function that runs kube-controller-manager
// until its context ends, and whether it makes default ServiceAccounts.
func newControllerManager(ctx context.Context, args []string) (run func(context.Context) error, serviceAccounts bool, err error) {
	known, disabled, aliases := kcm.KnownControllers(), kcm.ControllersDisabledByDefault(), kcm.ControllerAliases()
	o, err := kcmoptions.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, false, err
	}
	if err := parse(o.Flags(known, disabled, aliases), args); err != nil {
		return nil, false, err
	}
	if err := o.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, false, fmt.Errorf("setting feature gates: %w", err)
	}
	config, err := o.Config(ctx, known, disabled, aliases)
	if err != nil {
		return nil, false, err
	}
	serviceAccounts = controllermanager.IsControllerEnabled(names.ServiceAccountController, sets.NewString(disabled...), config.ComponentConfig.Generic.Controllers)
	completed := config.Complete()
	return func(ctx context.Context) error { return kcm.Run(ctx, completed) }, serviceAccounts, nil
}

func newScheduler(ctx context.Context, files pki.Cluster) (func(context.Context) error, error) {
	kubeconfig := files.Kubeconfig("kube-scheduler")
	o := scheduleroptions.NewOptions()
	err := parse(*o.Flags, []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--secure-port=0", "--leader-elect=false",
	})
	if err != nil {
		return nil, err
	}
	if err := o.ComponentGlobalsRegistry.Set(); err != nil {
		return nil, fmt.Errorf("setting feature gates: %w", err)
	}
	config, s, err := scheduler.Setup(ctx, o)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return scheduler.Run(ctx, config, s) }, nil
}
