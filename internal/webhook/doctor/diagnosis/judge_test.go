package diagnosis

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/lanyard-id/lanyard/internal/webhook/mutation"
)

var testConfig = mutation.Config{
	TenantID:       "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee",
	AuthorityHost:  "https://login.microsoftonline.com/",
	Proxy:          mutation.Proxy{Image: "lanyard/proxy:dev", InitImage: "lanyard/proxy-init:dev", LogLevel: "info"},
	NativeSidecars: true,
}

func subject(t *testing.T, text string) Subject {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSubject(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asked is a configuration as the chart makes it.
func asked(t *testing.T, more string) Hook {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(`webhooks: [{name: other}, {name: w, clientConfig: {caBundle: eA==}, rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}], objectSelector: {matchLabels: {azure.workload.identity/use: "true"}}` + more + `}]`))
	if err != nil {
		t.Fatal(err)
	}
	h, err := ParseHook(raw, "w")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

const (
	bare = `
metadata:
  name: web-5d8f7-abcde
  generateName: web-5d8f7-
  namespace: shop
  uid: u1
  labels: {azure.workload.identity/use: "true"}
  annotations: {}
  ownerReferences: []
spec:
  serviceAccountName: app
  containers: [{name: main, image: x}]
status: {phase: Running}
`
	// As AKS and releases before v1.6 make it, with a variable that is ours no longer.
	legacy = `
  containers:
  - name: main
    env: [{name: AZURE_CLIENT_ID, value: c1}, {name: AZURE_TENANT_ID, value: other}, {name: AZURE_FEDERATED_TOKEN_FILE, value: /var/run/secrets/azure/tokens/azure-identity-token}, {name: AZURE_AUTHORITY_HOST, value: x}]
    volumeMounts: [{name: azure-identity-token, mountPath: /var/run/secrets/azure/tokens, readOnly: true}]
  volumes: [{name: azure-identity-token, projected: {defaultMode: 420, sources: [{serviceAccountToken: {audience: another, expirationSeconds: 7200, path: azure-identity-token}}]}}]
`
	// As v1.6 makes it of a pod with a prefix for its name.
	prefixed = `
  containers:
  - name: main
    env: [{name: AZURE_TENANT_ID, value: t}, {name: AZURE_FEDERATED_TOKEN_FILE, value: /var/run/secrets/azure/wi/token/azure-identity-token}]
    volumeMounts: [{name: azure-workload-identity-reserved-8feb4451c162b502f232314a5501aa, mountPath: /var/run/secrets/azure/wi, readOnly: true}]
  volumes: [{name: azure-workload-identity-reserved-8feb4451c162b502f232314a5501aa, projected: {sources: [{serviceAccountToken: {audience: api://AzureADTokenExchange, expirationSeconds: 3600, path: token/azure-identity-token}}]}}]
`
	// A webhook is not needed for that.
	byHand = `
  containers:
  - name: main
    env: [{name: AZURE_FEDERATED_TOKEN_FILE, value: /tokens/mine/t}]
    volumeMounts: [{name: other, mountPath: /x}, {name: mine, mountPath: /tokens/}]
  volumes: [{name: other, emptyDir: {}}, {name: mine, projected: {sources: [{configMap: {}}, {serviceAccountToken: {path: mine/t}}]}}]
`
	container = "  containers: [{name: main, image: x}]\n"
	noOwner   = "ownerReferences: []"
	inSet     = "ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: o1, controller: true}]"
)

func TestJudgement(t *testing.T) {
	for name, test := range map[string]struct {
		edit    []string // old and new texts in the pod
		hook    string
		missing bool              // the configuration
		labels  map[string]string // of the namespace
		account map[string]string // annotations
		layout  mutation.Layout
		want    Finding
		keep    string // a part of why it is kept; empty: it may be evicted
	}{
		"a pod of a ReplicaSet that the webhook never saw":            {edit: []string{noOwner, inSet}, want: NotMutated},
		"a pod without a controller is kept":                          {want: NotMutated, keep: "no controller"},
		"an owner that is no controller does not count":               {edit: []string{noOwner, strings.Replace(inSet, "true", "false", 1)}, want: NotMutated, keep: "no controller"},
		"a pod of a StatefulSet":                                      {edit: []string{noOwner, strings.Replace(inSet, "ReplicaSet", "StatefulSet", 1)}, want: NotMutated},
		"a pod of a DaemonSet":                                        {edit: []string{noOwner, strings.Replace(inSet, "ReplicaSet", "DaemonSet", 1)}, want: NotMutated},
		"a pod of a Job is kept":                                      {edit: []string{noOwner, strings.Replace(inSet, "apps/v1, kind: ReplicaSet", "batch/v1, kind: Job", 1)}, want: NotMutated, keep: "Job"},
		"a kind of the same name in another group is kept":            {edit: []string{noOwner, strings.Replace(inSet, "apps/v1", "evil.example/v1", 1)}, want: NotMutated, keep: "not known"},
		"a static pod is no business of ours":                         {edit: []string{"annotations: {}", "annotations: {kubernetes.io/config.mirror: x}"}},
		"a pod of the node is no business of ours":                    {edit: []string{noOwner, strings.Replace(inSet, "apps/v1, kind: ReplicaSet", "v1, kind: Node", 1)}},
		"a pod that is being deleted":                                 {edit: []string{"uid: u1", "uid: u1\n  deletionTimestamp: 2026-01-01T00:00:00Z"}},
		"a pod that has finished":                                     {edit: []string{"Running", "Succeeded"}},
		"a pod that has failed":                                       {edit: []string{"Running", "Failed"}},
		"a pod that asks to be ignored":                               {edit: []string{"annotations: {}", "annotations: {lanyard.id/doctor: ignore}"}},
		"a pod that no longer asks for an identity":                   {edit: []string{`use: "true"`, `use: "false"`}},
		"the namespaceSelector leaves it out":                         {hook: `, namespaceSelector: {matchExpressions: [{key: control-plane, operator: DoesNotExist}]}`, labels: map[string]string{"control-plane": "true"}},
		"the namespaceSelector has it":                                {hook: `, namespaceSelector: {matchExpressions: [{key: control-plane, operator: DoesNotExist}]}`, want: NotMutated, keep: "no controller"},
		"the namespaceSelector names its namespace":                   {hook: `, namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [shop]}]}`},
		"without a configuration nobody is evicted":                   {edit: []string{noOwner, inSet}, missing: true, want: NotMutated, keep: "configuration is missing"},
		"with matchConditions nobody is evicted":                      {edit: []string{noOwner, inSet}, hook: ", matchConditions: [{name: a, expression: 'true'}]", want: NotMutated, keep: "matchConditions"},
		"without a caBundle nobody is evicted":                        {edit: []string{noOwner, inSet}, hook: ", clientConfig: {}", want: NotMutated, keep: "caBundle"},
		"without a rule for new pods nobody is evicted":               {edit: []string{noOwner, inSet}, hook: ", rules: [{apiGroups: ['*'], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]", want: NotMutated, keep: "no rule"},
		"a rule for everything is one for new pods":                   {edit: []string{noOwner, inSet}, hook: ", rules: [{apiGroups: ['*'], apiVersions: ['*'], operations: ['*'], resources: ['*']}]", want: NotMutated},
		"the autoscaler is told not to evict it":                      {edit: []string{noOwner, inSet, "annotations: {}", `annotations: {cluster-autoscaler.kubernetes.io/safe-to-evict: "false"}`}, want: NotMutated, keep: "safe-to-evict"},
		"Karpenter is told not to evict it":                           {edit: []string{noOwner, inSet, "annotations: {}", `annotations: {karpenter.sh/do-not-disrupt: "true"}`}, want: NotMutated, keep: "do-not-disrupt"},
		"its author mounts a token by hand":                           {edit: []string{noOwner, inSet, container, byHand}},
		"its author mounts a token where nobody looks":                {edit: []string{noOwner, inSet, container, strings.Replace(byHand, "/tokens/mine/t}", "/tokens/mine/u}", 1)}, want: NotMutated},
		"a copy of a mutated pod under another name":                  {edit: []string{noOwner, inSet, container, prefixed, "web-5d8f7-abcde", "copy"}},
		"mutated by AKS or before v1.6":                               {edit: []string{container, legacy}},
		"mutated in v1.6's layout, and now the other is set":          {edit: []string{container, prefixed, "web-5d8f7-\n", "web-5d8f7c9b6d-\n"}, layout: mutation.LayoutLegacy},
		"mutated when it had only a prefix for its name":              {edit: []string{container, prefixed, "web-5d8f7-\n", "web-5d8f7c9b6d-\n"}},
		"a bad annotation that came later says nothing about it":      {edit: []string{container, legacy, "annotations: {}", `annotations: {azure.workload.identity/service-account-token-expiration: "1"}`}},
		"the webhook would refuse a new pod":                          {edit: []string{noOwner, inSet, "annotations: {}", `annotations: {azure.workload.identity/service-account-token-expiration: "1"}`}, want: NotMutated, keep: "would refuse"},
		"the webhook would refuse a pod of this account":              {edit: []string{noOwner, inSet}, account: map[string]string{"azure.workload.identity/service-account-token-expiration": "1"}, want: NotMutated, keep: "would refuse"},
		"a pod that refuses itself with a mount in the token's place": {edit: []string{noOwner, inSet, "image: x}]", "volumeMounts: [{name: d, mountPath: /var/run/secrets/azure/wi}]}]"}, want: NotMutated, keep: "would refuse"},
		"every container is left out by annotation":                   {edit: []string{noOwner, inSet, "annotations: {}", "annotations: {azure.workload.identity/skip-containers: main}"}, want: NotMutated},
		"a container came after the webhook":                          {edit: []string{noOwner, inSet, container, legacy, "  volumes: [", "  - {name: late, image: x}\n  volumes: ["}, want: Incomplete, keep: "would be the same"},
		"that container is left out by annotation":                    {edit: []string{"annotations: {}", "annotations: {azure.workload.identity/skip-containers: late}", container, legacy, "  volumes: [", "  - {name: late, image: x}\n  volumes: ["}},
		"the token proxy is missing":                                  {edit: []string{noOwner, inSet, "annotations: {}", `annotations: {azure.workload.identity/inject-proxy-sidecar: "true"}`, container, legacy}, want: Incomplete, keep: "would be the same"},
		"the token proxy is there":                                    {edit: []string{"annotations: {}", `annotations: {azure.workload.identity/inject-proxy-sidecar: "true"}`, container, legacy, "  volumes: [", "  - {name: azwi-proxy}\n  initContainers: [{name: azwi-proxy-init}]\n  volumes: ["}},
		"the account was annotated after the pod":                     {edit: []string{noOwner, inSet, container, prefixed, "web-5d8f7-\n", "web-5d8f7c9b6d-\n"}, account: map[string]string{"azure.workload.identity/client-id": "c2"}, want: StaleIdentity},
		"the account names another client id": {edit: []string{noOwner, inSet, container, legacy, "annotations: {}", `annotations: {lanyard.id/injected-identity: '{"serviceAccount":"app","env":{"AZURE_CLIENT_ID":{"value":"c1","containers":["main"]}}}'}`},
			account: map[string]string{"azure.workload.identity/client-id": "c2"}, want: StaleIdentity},
		"the same, of a pod without a controller": {edit: []string{container, legacy, "annotations: {}", `annotations: {lanyard.id/injected-identity: '{"serviceAccount":"app","env":{"AZURE_CLIENT_ID":{"value":"c1","containers":["main"]}}}'}`},
			account: map[string]string{"azure.workload.identity/client-id": "c2"}, want: StaleIdentity, keep: "no controller"},
		"a client id that the pod itself may have written is not ours to judge": {edit: []string{container, legacy}, account: map[string]string{"azure.workload.identity/client-id": "c2"}},
		"the account names the same client id":                                  {edit: []string{container, legacy}, account: map[string]string{"azure.workload.identity/client-id": "c1"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := bare
			for i := 0; i < len(test.edit); i += 2 {
				if !strings.Contains(text, test.edit[i]) {
					t.Fatalf("the pod has no %q", test.edit[i])
				}
				text = strings.Replace(text, test.edit[i], test.edit[i+1], 1)
			}
			hook, cfg := asked(t, test.hook), testConfig
			if test.missing {
				hook = Hook{}
			}
			cfg.Layout = test.layout
			labels := map[string]string{"kubernetes.io/metadata.name": "shop"}
			for k, v := range test.labels {
				labels[k] = v
			}
			got := Judge(subject(t, text), labels, hook, mutation.ServiceAccount{Namespace: "shop", Name: "app", Annotations: test.account}, cfg)
			if got.Finding != test.want || (got.Keep == "") != (test.keep == "") || !strings.Contains(got.Keep, test.keep) {
				t.Errorf("got %+v, want %q and to be kept for %q", got, test.want, test.keep)
			}
			if got.Finding != Healthy && got.Detail == "" {
				t.Error("nothing says what the pod lacks")
			}
		})
	}
}

// What the webhook makes of a pod is healthy, whatever the settings are by now;
// what it was sent is not.
func TestEveryCaseOfTheWebhookIsHealthyAfterIt(t *testing.T) {
	paths, err := filepath.Glob("../../testdata/cases/*.txtar")
	if err != nil || len(paths) < 50 {
		t.Fatalf("%d cases, %v", len(paths), err)
	}
	judged := 0
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{}
		for _, f := range archive.Files {
			files[f.Name] = string(f.Data)
		}
		if files["mutated.yaml"] == "" || files["config.yaml"] != "" || files["first-serviceaccount.yaml"] != "" {
			continue
		}
		judged++
		for _, layout := range []mutation.Layout{mutation.LayoutV16, mutation.LayoutLegacy} {
			cfg := testConfig
			cfg.Layout, cfg.TenantID, cfg.AuthorityHost = layout, "another", "https://login.example/"
			if v := Judge(subject(t, files["mutated.yaml"]), nil, asked(t, ""), mutation.ServiceAccount{}, cfg); v.Finding != Healthy {
				t.Errorf("%s: mutated, now with layout %q: %+v", path, layout, v)
			}
			if v := Judge(subject(t, files["pod.yaml"]), nil, asked(t, ""), mutation.ServiceAccount{}, cfg); v.Finding == Healthy {
				t.Errorf("%s: as it was sent, now with layout %q, it passes for healthy", path, layout)
			}
		}
	}
	if judged < 30 {
		t.Errorf("only %d cases are judged", judged)
	}
}

func TestAPodThatCannotBeReadIsAnError(t *testing.T) {
	for _, raw := range []string{``, `[]`, `{"spec":{"containers":3}}`, `{"metadata":{"ownerReferences":"x"},"spec":{}}`} {
		if _, err := ParseSubject([]byte(raw)); err == nil {
			t.Errorf("%s is read", raw)
		}
	}
	if _, err := ParseHook([]byte(`{"webhooks":[{"name":"w","objectSelector":{"matchExpressions":[{"key":"a","operator":"Near"}]}}]}`), "w"); err == nil {
		t.Error("a selector without meaning is read")
	}
}
