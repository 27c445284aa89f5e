package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	v1 "github.com/lanyard-id/lanyard/api/aadpodidentity/v1"
	"github.com/lanyard-id/lanyard/deploy"
	"github.com/lanyard-id/lanyard/internal/access"
	"github.com/lanyard-id/lanyard/internal/lab/labtest"
)

// TestAccessScripts runs the commands of people against a real API server, with
// a kubeconfig that has a context for each of alice, who asks, bob, who may
// approve, and carol, who may do nothing.
func TestAccessScripts(t *testing.T) {
	cluster := &labtest.Cluster{CRDs: deploy.FS}
	config := cluster.Config(t)
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{rbacv1.AddToScheme, v1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	docs, err := deploy.Manifests("access")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(docs[0]), "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), u); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/access",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			namespace := cluster.Namespace(t)
			for user, role := range map[string]string{"alice": "lanyard-access-requester", "bob": "lanyard-access-approver"} {
				if err := c.Create(t.Context(), &rbacv1.RoleBinding{
					ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: user},
					Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
					RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
				}); err != nil {
					return err
				}
			}
			for name, mode := range map[string]v1.AccessMode{"payroll": v1.AccessOnRequest, "plain": ""} {
				b := &v1.AzureIdentityBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.AzureIdentityBindingSpec{AzureIdentity: "i", Selector: "l", Access: mode}}
				if err := c.Create(t.Context(), b); err != nil {
					return err
				}
			}
			kubeconfig := filepath.Join(e.WorkDir, "kubeconfig")
			e.Setenv("NAMESPACE", namespace)
			e.Setenv("KUBECONFIG", kubeconfig)
			return people(cluster.Kubeconfig(t), kubeconfig, namespace, "alice", "bob", "carol")
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"keep":    keep,
			"waiting": func(ts *testscript.TestScript, neg bool, args []string) { waiting(t, ts, neg, args) },
		},
	})
}

// people writes a kubeconfig with a context per user, the first one current.
func people(from, to, namespace string, users ...string) error {
	config, err := clientcmd.LoadFromFile(from)
	if err != nil {
		return err
	}
	admin := config.Contexts[config.CurrentContext]
	if admin == nil {
		return fmt.Errorf("%s has no current context", from)
	}
	for _, user := range users {
		info := config.AuthInfos[admin.AuthInfo].DeepCopy()
		info.Impersonate, info.ImpersonateGroups = user, []string{"system:authenticated"}
		config.AuthInfos[user] = info
		config.Contexts[user] = &clientcmdapi.Context{Cluster: admin.Cluster, AuthInfo: user, Namespace: namespace}
	}
	config.CurrentContext = users[0]
	return clientcmd.WriteToFile(*config, to)
}

// waiting waits for a request with the given reason and sets WAITING to its name.
func waiting(t *testing.T, ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: waiting REASON")
	}
	config, err := clientcmd.BuildConfigFromFlags("", ts.Getenv("KUBECONFIG"))
	ts.Check(err)
	d, err := access.NewDesk(config)
	ts.Check(err)
	labtest.Eventually(t, t.Context(), func() error {
		all, err := d.List(t.Context(), ts.Getenv("NAMESPACE"))
		if err != nil {
			return err
		}
		for i := range all {
			if all[i].Spec.Reason == args[0] {
				ts.Setenv("WAITING", all[i].Name)
				return nil
			}
		}
		return fmt.Errorf("nobody asks because of %q", args[0])
	})
}

// keep sets a variable to the name that the last command printed with -o name.
func keep(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: keep NAME")
	}
	_, name, ok := strings.Cut(strings.TrimSpace(ts.ReadFile("stdout")), "/")
	if !ok {
		ts.Fatalf("that is no name")
	}
	ts.Setenv(args[0], name)
}
