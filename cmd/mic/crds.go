package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/deploy"
)

const crdsUsage = `mic crds applies this version's CustomResourceDefinitions and waits until they
are served. The Helm chart runs it before each install and upgrade: Helm itself
never upgrades CRDs.

Flags:
`

// crdsLimit is how long "mic crds" waits for the API server.
const crdsLimit = time.Minute

// crds is the command "mic crds".
func crds(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("mic crds", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, crdsUsage)
		f.PrintDefaults()
	}
	file := f.String("kubeconfig", getenv("KUBECONFIG"), "kubeconfig `file`; empty means the pod's service account")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q (see mic crds --help)", f.Arg(0))
	}
	config, err := kubeConfig(*file)
	if err != nil {
		return err
	}
	config.UserAgent = "lanyard/mic/" + version
	clients, err := apiextensions.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	docs, err := deploy.CRDs(deploy.PodIdentity)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, crdsLimit)
	defer cancel()
	for _, doc := range docs {
		name, err := applyCRD(ctx, clients.CustomResourceDefinitions(), doc)
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, name, "is served")
	}
	return nil
}

// applyCRD takes every field that the document sets, whoever set it before:
// the object may be v1's, or another tool's.
func applyCRD(ctx context.Context, client apiextensions.CustomResourceDefinitionInterface, doc []byte) (name string, err error) {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(doc, &crd); err != nil {
		return "", fmt.Errorf("reading an embedded CRD: %w", err)
	}
	force := true
	if _, err := client.Patch(ctx, crd.Name, types.ApplyYAMLPatchType, doc, metav1.PatchOptions{FieldManager: "lanyard", Force: &force}); err != nil {
		return "", fmt.Errorf("applying %s: %w", crd.Name, err)
	}
	err = wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		got, err := client.Get(ctx, crd.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range got.Status.Conditions {
			if c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue {
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return "", fmt.Errorf("waiting until %s is served: %w", crd.Name, err)
	}
	return crd.Name, nil
}
