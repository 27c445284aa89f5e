// Command kube is a real Kubernetes in one static program: the control plane in
// one process ("kube server") and every component by its own name.
//
//	kube server --dir DIR         etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//	kube kubelet|kube-proxy|...   one component with its own flags
//	kubelet|kube-proxy|...        the same, through a link of that name
//
// The components are those of the Kubernetes release in go.mod, with their
// version. It is a module of its own, so that the rest of the repository never
// compiles Kubernetes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"

	"github.com/lanyard-id/lanyard/lab/kubernetes/internal/controlplane"
)

func main() {
	ctx, stop := context.Background(), func() {}
	args := os.Args
	if _, ok := findComponent(filepath.Base(args[0])); !ok {
		args = args[1:]
	}
	if len(args) > 0 && args[0] == "server" {
		// The components by themselves handle signals on their own.
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	}
	err := run(ctx, args, os.Stdout, os.Stderr)
	stop()
	var code exitCode
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		fmt.Fprintln(os.Stderr, "kube:", err)
		os.Exit(1)
	}
}

const usage = `A real Kubernetes in one program.

usage: kube VERB [flags]        (or a link to this program with the verb as its name)

  server       etcd, kube-apiserver, kube-controller-manager and kube-scheduler in one process
  version      the versions of what is inside

  kubelet  kube-proxy  kubectl  coredns
  etcd  kube-apiserver  kube-controller-manager  kube-scheduler
               one component, with its own flags

"kube VERB --help" explains the flags of a verb.
`

// run does what args say; args[0] is the verb.
func run(ctx context.Context, args []string, stdout io.Writer, stderr *os.File) error {
	if len(args) == 0 {
		return fmt.Errorf("a verb is missing\n\n%s", usage)
	}
	switch verb := args[0]; verb {
	case "help", "-h", "-help", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	case "version", "--version":
		return printVersions(stdout)
	case "server":
		config, err := controlplane.ParseFlags(args[1:], stdout)
		if err != nil {
			return err
		}
		return controlplane.Run(ctx, config, stdout, stderr)
	default:
		component, ok := findComponent(filepath.Base(verb))
		if !ok {
			return fmt.Errorf("unknown verb %q\n\n%s", verb, usage)
		}
		return component(ctx, args)
	}
}

func printVersions(stdout io.Writer) error {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return errors.New("this program was built without module information")
	}
	for _, m := range []struct{ name, path string }{
		{"kubernetes", "k8s.io/kubernetes"}, {"etcd", "go.etcd.io/etcd/server/v3"}, {"coredns", "github.com/coredns/coredns"},
	} {
		i := slices.IndexFunc(info.Deps, func(d *debug.Module) bool { return d.Path == m.path })
		if i < 0 {
			return fmt.Errorf("the module %s is not in this program", m.path)
		}
		if _, err := fmt.Fprintf(stdout, "%-10s %s\n", m.name, info.Deps[i].Version); err != nil {
			return err
		}
	}
	return nil
}
