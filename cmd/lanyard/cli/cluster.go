package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// A Cluster are the flags that say which cluster, as which user and in which
// namespace, as kubectl's do.
type Cluster struct {
	kubeconfig string
	overrides  clientcmd.ConfigOverrides
}

// Add adds --kubeconfig, --context and --namespace to cmd. The usage of the
// last says whose namespace it is.
func (c *Cluster) Add(cmd *cobra.Command, namespaceUsage string) {
	flags := cmd.Flags()
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "`file` to use instead of $KUBECONFIG or ~/.kube/config")
	flags.StringVar(&c.overrides.CurrentContext, "context", "", "`name` of a context of the kubeconfig")
	flags.StringVarP(&c.overrides.Context.Namespace, "namespace", "n", "", namespaceUsage)
	_ = cmd.MarkFlagFilename("kubeconfig") // fails only for a flag that does not exist
	_ = cmd.RegisterFlagCompletionFunc("context", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		config, err := c.loader().RawConfig()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for name := range config.Contexts {
			names = append(names, name)
		}
		slices.Sort(names)
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	_ = cmd.RegisterFlagCompletionFunc("namespace", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		names, err := c.namespaces(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
}

// completionTimeout is how long somebody waits who presses the tab key.
const completionTimeout = 3 * time.Second

func (c *Cluster) namespaces(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	config, _, err := c.Config()
	if err != nil {
		return nil, err
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	list, err := clients.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list.Items))
	for i := range list.Items {
		names[i] = list.Items[i].Name
	}
	return names, nil
}

func (c *Cluster) loader() clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &c.overrides)
}

// Config returns how to reach the cluster, and the namespace: the flag's, else
// the context's.
func (c *Cluster) Config() (config *rest.Config, namespace string, err error) {
	loader := c.loader()
	if config, err = loader.ClientConfig(); err != nil {
		return nil, "", fmt.Errorf("which cluster? Set KUBECONFIG, or give --kubeconfig and --context: %w", err)
	}
	namespace, _, err = loader.Namespace()
	return config, namespace, err
}
