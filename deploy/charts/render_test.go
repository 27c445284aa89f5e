package charts_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/diff"
	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lanyard-id/lanyard/deploy/charts"
)

var update = flag.Bool("update", false, "rewrite the golden files of testdata")

func contains(s, part string) bool { return strings.Contains(s, part) }

// values reads values in the form of a values file.
func values(t testing.TB, text string) map[string]any {
	t.Helper()
	v, err := common.ReadValues([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return v
}

func render(t testing.TB, r charts.Release) *release.Release {
	t.Helper()
	rendered, err := charts.Render(t.Context(), load(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return rendered
}

// everything is the whole release as text, hooks included.
func everything(r *release.Release) string {
	var b strings.Builder
	b.WriteString(r.Manifest)
	for _, h := range r.Hooks {
		fmt.Fprintf(&b, "---\n# Source: %s\n%s\n", h.Path, h.Manifest)
	}
	return b.String()
}

func TestTheChartIsClean(t *testing.T) {
	files, err := filepath.Glob("testdata/*.values.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d values files, %v", len(files), err)
	}
	for _, f := range files {
		lint := action.NewLint()
		lint.Strict = true
		result := lint.Run([]string{charts.Dir}, values(t, string(read(t, f))))
		for _, m := range result.Messages {
			if !contains(m.Error(), "icon is recommended") {
				t.Errorf("%s: %s", f, m)
			}
		}
	}
}

// The goldens: the default in full, every other values file as what it changes.
func TestRenderedObjects(t *testing.T) {
	files, err := filepath.Glob("testdata/*.values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	base := everything(render(t, charts.Release{Namespace: "kube-system"}))
	golden(t, "testdata/default.golden", base)
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			r := render(t, charts.Release{Namespace: "kube-system", Values: values(t, string(read(t, f)))})
			changed := diff.Diff("default", []byte(base), filepath.Base(f), []byte(everything(r)))
			golden(t, strings.TrimSuffix(f, ".values.yaml")+".diff", string(changed))
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	got = strings.ReplaceAll(got, " \n", "\n")
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d := diff.Diff(name, read(t, name), "now", []byte(got)); len(d) > 0 {
		t.Errorf("go test -run %s -update rewrites it, if this is meant:\n%s", t.Name(), d)
	}
}

// effects says for every value of the chart what it does to the rendered text:
// lines that appear. No lines means that it is accepted without effect.
var effects = map[string]struct {
	values string
	lines  []string
}{
	"nameOverride":          {"nameOverride: id", []string{"name: id-mic", "name: id-nmi", "app.kubernetes.io/name: id"}},
	"fullnameOverride":      {"{fullnameOverride: full, rbac: {createUserFacingClusterRoles: true}}", []string{"name: full-view", "name: full-edit"}},
	"image.repository":      {"image: {repository: r.example/x}", []string{`image: "r.example/x/mic:dev"`, `image: "r.example/x/nmi:dev"`}},
	"image.imagePullPolicy": {"image: {imagePullPolicy: Always}", []string{"imagePullPolicy: Always"}},
	"imagePullSecrets":      {"imagePullSecrets: [{name: key}]", []string{"imagePullSecrets:", "- name: key"}},
	"forceNamespaced":       {"forceNamespaced: true", []string{`value: "true"`}},
	"installMICException":   {"installMICException: true", nil}, // its default; see TestWhatIsLeftOut
	"adminsecret": {"adminsecret: {cloud: AzurePublicCloud, subscriptionID: s, resourceGroup: g, vmType: vmss, tenantID: t, clientID: c, clientSecret: password}",
		[]string{"ClientSecret: \"cGFzc3dvcmQ=\"", "runAsNonRoot: true", "key: ClientSecret"}},
	"operationMode":                           {"operationMode: managed", []string{"- --operation-mode=managed", "- --forceNamespaced"}},
	"customUserAgent":                         {"customUserAgent: me too", []string{`- "--custom-user-agent=me too"`}},
	"upgradeCRDs":                             {"upgradeCRDs: true", nil}, // its default
	"mic.image":                               {"mic: {image: m}", []string{`image: "lanyard/m:dev"`}},
	"mic.tag":                                 {"mic: {tag: t1}", []string{`image: "lanyard/mic:t1"`}},
	"mic.replicas":                            {"mic: {replicas: 3}", []string{"replicas: 3"}},
	"mic.priorityClassName":                   {"mic: {priorityClassName: p}", []string{`priorityClassName: "p"`}},
	"mic.logVerbosity":                        {"mic: {logVerbosity: 5}", nil},
	"mic.loggingFormat":                       {"mic: {loggingFormat: text}", []string{"- --log-format=text"}},
	"mic.resources":                           {"mic: {resources: {limits: {cpu: 200m, memory: 1024Mi}}}", []string{"memory: 1024Mi", "cpu: 200m"}},
	"mic.podAnnotations":                      {"mic: {podAnnotations: {a: b}}", []string{"a: b"}},
	"mic.podLabels":                           {"mic: {podLabels: {a: b}}", []string{"a: b"}},
	"mic.nodeSelector":                        {"mic: {nodeSelector: {a: b}}", []string{"a: b"}},
	"mic.tolerations":                         {"mic: {tolerations: [{key: k}]}", []string{"- key: k"}},
	"mic.affinity":                            {"mic: {affinity: {nodeAffinity: {a: b}}}", []string{"nodeAffinity:"}},
	"mic.topologySpreadConstraints":           {"mic: {topologySpreadConstraints: [{topologyKey: x}]}", []string{"- topologyKey: x"}},
	"mic.podDisruptionBudget":                 {"mic: {podDisruptionBudget: {minAvailable: 2}}", []string{"minAvailable: 2"}},
	"mic.leaderElection.instance":             {"mic: {leaderElection: {instance: i}}", []string{"- --leader-election-instance=i"}},
	"mic.leaderElection.namespace":            {"mic: {leaderElection: {namespace: l}}", []string{"- --leader-election-namespace=l", "namespace: l"}},
	"mic.leaderElection.name":                 {"mic: {leaderElection: {name: l}}", []string{"- --leader-election-name=l", `resourceNames: ["l"]`}},
	"mic.leaderElection.duration":             {"mic: {leaderElection: {duration: 30s}}", []string{"- --leader-election-duration=30s"}},
	"mic.leaderElection.endpointsRecord":      {"mic: {leaderElection: {endpointsRecord: true}}", []string{"- --leader-election-endpoints-record", "resources: [endpoints]"}},
	"mic.windowLead":                          {"mic: {windowLead: 30s}", []string{"- --window-lead=30s"}},
	"mic.startupTaint":                        {"mic: {startupTaint: lanyard.id/nmi-not-ready}", []string{"- --startup-taint=lanyard.id/nmi-not-ready", "- key: lanyard.id/nmi-not-ready", "resources: [nodes]"}},
	"mic.probePort":                           {"mic: {probePort: 8081}", []string{"- --http-probe-port=8081", "containerPort: 8081"}},
	"mic.syncRetryDuration":                   {"mic: {syncRetryDuration: 10s}", nil},
	"mic.immutableUserMSIs":                   {"mic: {immutableUserMSIs: [a, b]}", []string{"- --immutable-user-msis=a,b"}},
	"mic.createDeleteBatch":                   {`mic: {createDeleteBatch: "30"}`, nil},
	"mic.clientQps":                           {`mic: {clientQps: "50"}`, []string{"- --clientQps=50"}},
	"mic.prometheusPort":                      {`mic: {prometheusPort: "8889"}`, []string{"- --prometheus-port=8889", "containerPort: 8889"}},
	"mic.cloudConfig":                         {"mic: {cloudConfig: /x/azure.json}", []string{"- --cloudconfig=/x/azure.json", "path: /x/azure.json", "mountPath: /x/azure.json"}},
	"mic.existingSecret":                      {"mic: {existingSecret: mine}", []string{"name: mine", "runAsNonRoot: true"}},
	"mic.customCloud.enabled":                 {"mic: {customCloud: {enabled: true}}", []string{"- name: AZURE_ENVIRONMENT_FILEPATH", "mountPath: /etc/kubernetes/akscustom.json"}},
	"mic.customCloud.configPath":              {"mic: {customCloud: {enabled: true, configPath: /x}}", []string{`value: "/x"`, "mountPath: /x"}},
	"mic.updateUserMSIMaxRetry":               {`mic: {updateUserMSIMaxRetry: "3"}`, nil},
	"mic.updateUserMSIRetryInterval":          {"mic: {updateUserMSIRetryInterval: 2s}", nil},
	"mic.identityAssignmentReconcileInterval": {"mic: {identityAssignmentReconcileInterval: 5m}", []string{"- --identity-assignment-reconcile-interval=5m"}},
	"nmi.image":                               {"nmi: {image: other}", []string{`image: "lanyard/other:dev"`}},
	"nmi.tag":                                 {"nmi: {tag: t1}", []string{`image: "lanyard/nmi:t1"`}},
	"nmi.priorityClassName":                   {"nmi: {priorityClassName: p}", []string{`priorityClassName: "p"`}},
	"nmi.logVerbosity":                        {"nmi: {logVerbosity: 5}", nil},
	"nmi.loggingFormat":                       {"nmi: {loggingFormat: text}", []string{"- --log-format=text"}},
	"nmi.resources":                           {"nmi: {resources: {limits: {cpu: 200m}}}", []string{"cpu: 200m"}},
	"nmi.updateStrategy":                      {"nmi: {updateStrategy: {rollingUpdate: {maxUnavailable: 10%}}}", []string{"maxUnavailable: 10%"}},
	"nmi.podAnnotations":                      {"nmi: {podAnnotations: {a: b}}", []string{"a: b"}},
	"nmi.podLabels":                           {"nmi: {podLabels: {a: b}}", []string{"a: b"}},
	"nmi.nodeSelector":                        {"nmi: {nodeSelector: {a: b}}", []string{"a: b"}},
	"nmi.tolerations":                         {"nmi: {tolerations: [{key: k}]}", []string{"- key: k"}},
	"nmi.affinity":                            {"nmi: {affinity: {nodeAffinity: {a: b}}}", []string{"nodeAffinity:"}},
	"nmi.ipTableUpdateTimeIntervalInSeconds":  {`nmi: {ipTableUpdateTimeIntervalInSeconds: "30"}`, nil},
	"nmi.micNamespace":                        {"nmi: {micNamespace: kube-system}", nil},
	"nmi.probePort":                           {`nmi: {probePort: "8086"}`, []string{"- --http-probe-port=8086", "port: 8086"}},
	"nmi.retryAttemptsForCreated":             {`nmi: {retryAttemptsForCreated: "1"}`, []string{"- --assignment-wait=5s"}},
	"nmi.retryAttemptsForAssigned":            {`nmi: {retryAttemptsForAssigned: "1"}`, nil},
	"nmi.findIdentityRetryIntervalInSeconds":  {`nmi: {findIdentityRetryIntervalInSeconds: "1"}`, []string{"- --assignment-wait=16s"}},
	"nmi.enableScaleFeatures":                 {`nmi: {enableScaleFeatures: "false"}`, nil},
	"nmi.prometheusPort":                      {`nmi: {prometheusPort: "9091"}`, []string{"- --prometheus-port=9091", "containerPort: 9091"}},
	"nmi.blockInstanceMetadata":               {`nmi: {blockInstanceMetadata: "true"}`, []string{"- --block-instance-metadata=true"}},
	"nmi.metadataHeaderRequired":              {"nmi: {metadataHeaderRequired: false}", []string{"- --metadata-header-required=false"}},
	"nmi.allowNetworkPluginKubenet":           {"nmi: {allowNetworkPluginKubenet: true}", nil},
	"nmi.kubeletConfig":                       {"nmi: {kubeletConfig: /x}", nil},
	"nmi.setRetryAfterHeader":                 {"nmi: {setRetryAfterHeader: true}", []string{"- --set-retry-after-header=true"}},
	"nmi.enableConntrackDeletion":             {"nmi: {enableConntrackDeletion: true}", nil},
	"nmi.assignmentWait":                      {`nmi: {assignmentWait: 3s, retryAttemptsForCreated: "1"}`, []string{"- --assignment-wait=3s"}},
	"nmi.hostTokenCallers":                    {"nmi: {hostTokenCallers: [kube-system/csi]}", []string{"- --host-token-callers=kube-system/csi", "resources: [tokenreviews]", "hostPID: true", "- SYS_PTRACE", "- DAC_READ_SEARCH", "type: Unconfined"}},
	"nmi.blockHostNetwork":                    {"nmi: {blockHostNetwork: true}", []string{"- --block-host-network"}},
	"nmi.guardSources":                        {"nmi: {guardSources: false}", []string{"- --guard-sources=false"}},
	"nmi.podMaxInflight":                      {"nmi: {podMaxInflight: 0}", []string{"- --pod-max-inflight=0"}},
	"nmi.podQps":                              {`nmi: {podQps: "50"}`, []string{"- --pod-qps=50"}},
	"nmi.prefetchResources":                   {`nmi: {prefetchResources: ["https://vault.azure.net", b]}`, []string{`- "--prefetch-resources=https://vault.azure.net,b"`}},
	"nmi.allowCrossNamespaceSecrets":          {"nmi: {allowCrossNamespaceSecrets: true}", []string{"- --allow-cross-namespace-secrets"}},
	"nmi.allowedAuthorityHosts":               {`nmi: {allowedAuthorityHosts: ["*"]}`, []string{`- "--allowed-authority-hosts=*"`}},
	"rbac.enabled":                            {"rbac: {enabled: true}", nil},              // its default
	"rbac.allowAccessToSecrets":               {"rbac: {allowAccessToSecrets: true}", nil}, // its default
	"rbac.secretNamespaces":                   {"rbac: {secretNamespaces: [a]}", []string{"name: aad-pod-identity-nmi-secrets", "namespace: a"}},
	"rbac.pspEnabled":                         {"rbac: {pspEnabled: true}", nil},
	"rbac.createUserFacingClusterRoles":       {"rbac: {createUserFacingClusterRoles: true}", []string{`rbac.authorization.k8s.io/aggregate-to-view: "true"`}},
	"podMonitor.enabled":                      {"podMonitor: {enabled: true}", []string{"kind: PodMonitor", "containerPort: 9090"}},
	"podMonitor.interval":                     {"podMonitor: {enabled: true, interval: 15s}", []string{"interval: 15s"}},
	"podMonitor.scrapeTimeout":                {"podMonitor: {enabled: true, scrapeTimeout: 5s}", []string{"scrapeTimeout: 5s"}},
	"podMonitor.labels":                       {"podMonitor: {enabled: true, labels: {team: x}}", []string{"team: x"}},
	"azureIdentities": {"azureIdentities: {app: {namespace: ns, resourceID: r, clientID: c, binding: {name: b, selector: s, serviceAccountName: sa}}}",
		[]string{"kind: AzureIdentity", "type: 0", "resourceID: r", "kind: AzureIdentityBinding", "azureIdentity: app", "selector: s", "serviceAccountName: sa"}},
	"accessRequests.enabled":           {"accessRequests: {enabled: true}", nil},           // its default
	"accessRequests.automaticApproval": {"accessRequests: {automaticApproval: true}", nil}, // its default
}

func TestEveryValueHasItsEffect(t *testing.T) {
	list, err := charts.Values(read(t, filepath.Join(charts.Dir, "values.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	base := lines(everything(render(t, charts.Release{})))
	known := map[string]bool{}
	for _, v := range list {
		known[v.Name] = true
		effect, ok := effects[v.Name]
		if !ok {
			t.Errorf("no effect of the value %s is stated here", v.Name)
			continue
		}
		t.Run(v.Name, func(t *testing.T) {
			text := everything(render(t, charts.Release{Values: values(t, effect.values)}))
			got := lines(text)
			if len(effect.lines) == 0 {
				if d := cmp.Diff(base, got); d != "" {
					t.Errorf("it has an effect:\n%s", d)
				}
				if !contains(v.About, "Without effect") && !strings.HasSuffix(effect.values, "true}") && !strings.HasSuffix(effect.values, ": true") {
					t.Errorf("it has none, and its comment %q does not say so", v.About)
				}
			}
			for _, l := range effect.lines {
				if !slices.Contains(got, l) || count(base, l) >= count(got, l) {
					t.Errorf("the line %q is not added", l)
				}
			}
		})
	}
	for _, name := range slices.Sorted(maps.Keys(effects)) {
		if !known[name] {
			t.Errorf("values.yaml has no %s", name)
		}
	}
}

func lines(text string) []string {
	var list []string
	for l := range strings.Lines(text) {
		l, _, _ = strings.Cut(l, " #")
		list = append(list, strings.TrimSpace(l))
	}
	return list
}

func count(list []string, line string) (n int) {
	for _, l := range list {
		if l == line {
			n++
		}
	}
	return n
}

func TestWhatIsLeftOut(t *testing.T) {
	for name, test := range map[string]struct {
		values  string
		present []string
		absent  []string
	}{
		"everything by default": {"{}", []string{"Deployment aad-pod-identity-mic", "DaemonSet aad-pod-identity-nmi", "AzurePodIdentityException mic", "AzurePodIdentityException aks-addon-exception",
			"PodDisruptionBudget mic-pdb", "Job aad-pod-identity-crds", "ValidatingAdmissionPolicy access.lanyard.id", "ValidatingAdmissionPolicyBinding access.lanyard.id"}, []string{"Secret aad-pod-identity-mic", "ClusterRole aad-pod-identity-view"}},
		"no exceptions":           {`installMICException: "false"`, nil, []string{"AzurePodIdentityException mic", "AzurePodIdentityException aks-addon-exception"}},
		"managed mode has no mic": {"{operationMode: managed, adminsecret: {cloud: c, subscriptionID: s, resourceGroup: g, vmType: vmss, tenantID: t, clientID: c, clientSecret: x}, podMonitor: {enabled: true}}", []string{"AzurePodIdentityException aks-addon-exception", "PodMonitor aad-pod-identity-nmi"}, []string{"Deployment aad-pod-identity-mic", "Secret aad-pod-identity-mic", "AzurePodIdentityException mic", "PodMonitor aad-pod-identity-mic", "ClusterRole aad-pod-identity-mic", "PodDisruptionBudget mic-pdb"}},
		"no rights":               {"{rbac: {enabled: false, createUserFacingClusterRoles: true}}", nil, []string{"ServiceAccount aad-pod-identity-nmi", "ClusterRole aad-pod-identity-nmi", "ClusterRole aad-pod-identity-mic", "ClusterRole aad-pod-identity-view", "ServiceAccount aad-pod-identity-crds", "ClusterRole lanyard-access-approver"}},
		"no requests":             {"accessRequests: {enabled: false}", nil, []string{"ValidatingAdmissionPolicy access.lanyard.id", "ClusterRole lanyard-access-approver"}},
		"no job":                  {"upgradeCRDs: false", nil, []string{"Job aad-pod-identity-crds", "ClusterRole aad-pod-identity-crds"}},
		"no budget":               {"mic: {podDisruptionBudget: null}", nil, []string{"PodDisruptionBudget mic-pdb"}},
	} {
		t.Run(name, func(t *testing.T) {
			objects := objects(t, render(t, charts.Release{Values: values(t, test.values)}))
			have := map[string]bool{}
			for _, o := range objects {
				have[o.GetKind()+" "+o.GetName()] = true
			}
			for _, want := range test.present {
				if !have[want] {
					t.Errorf("there is no %s in %v", want, slices.Sorted(maps.Keys(have)))
				}
			}
			for _, not := range test.absent {
				if have[not] {
					t.Errorf("there is a %s", not)
				}
			}
		})
	}
}

func objects(t testing.TB, r *release.Release) []*unstructured.Unstructured {
	t.Helper()
	list, err := charts.Objects(everything(r))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestMistakesAreToldInWordsThatHelp(t *testing.T) {
	for name, test := range map[string]struct{ values, want string }{
		"a misspelt name":                   {"forceNameSpaced: true", "additional properties 'forceNameSpaced' not allowed"},
		"a misspelt name in a group":        {"nmi: {blockInstanceMetaData: true}", "blockInstanceMetaData"},
		"the list of identities of chart 2": {"azureIdentities: [{name: x}]", "azureIdentities"},
		"a mode that does not exist":        {"operationMode: manged", "'standard', 'managed'"},
		"a port that is none":               {"nmi: {probePort: http}", "probePort"},
		"a duration without unit":           {`mic: {leaderElection: {duration: "15"}}`, "duration"},
		"v1's image":                        {"image: {repository: mcr.microsoft.com/oss/azure/aad-pod-identity}", "--reset-then-reuse-values"},
		"v1's tag":                          {"nmi: {tag: v1.8.17}", "nmi.tag"},
		"half a principal":                  {"adminsecret: {cloud: AzurePublicCloud}", "adminsecret.subscriptionID is missing"},
		"no secret for a principal":         {"adminsecret: {cloud: c, subscriptionID: s, resourceGroup: g, vmType: vmss, tenantID: t, clientID: c}", "adminsecret.clientSecret is missing"},
		"two principals":                    {"{adminsecret: {cloud: c, subscriptionID: s, resourceGroup: g, vmType: vmss, tenantID: t, clientID: c, clientSecret: x}, mic: {existingSecret: other}}", "both set"},
		"a type of identity that is none":   {"azureIdentities: {x: {type: 3}}", "type"},
		"a taint with its effect":           {"mic: {startupTaint: \"a=b:NoSchedule\"}", "startupTaint"},
		"a caller without namespace":        {"nmi: {hostTokenCallers: [csi]}", "hostTokenCallers"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := charts.Render(t.Context(), load(t), charts.Release{Values: values(t, test.values)})
			if err == nil || !contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// Values of the old chart that --reuse-values puts in the place of this one's:
// the message must come before any template stumbles over what is missing.
func TestReusedDefaultsOfTheOldChartAreNamed(t *testing.T) {
	c := load(t)
	c.Values = values(t, `{image: {repository: mcr.microsoft.com/oss/azure/aad-pod-identity}, operationMode: standard, adminsecret: {}, forceNamespaced: "false",
  mic: {tag: v1.8.17, image: mic, leaderElection: {}, customCloud: {}}, nmi: {tag: v1.8.17, image: nmi}, rbac: {enabled: true, allowAccessToSecrets: true}}`)
	_, err := charts.Render(t.Context(), c, charts.Release{Upgrade: true})
	if err == nil || !contains(err.Error(), "--reset-then-reuse-values") {
		t.Errorf("error %v", err)
	}
}

func TestNotesSayWhatToDoNext(t *testing.T) {
	for name, test := range map[string]struct {
		values       string
		want, absent []string
	}{
		"by default": {"{}", []string{"rollout status deployment/aad-pod-identity-mic", "aadpodidbinding: my-app", "forceNamespaced=true", "mic reads /etc/kubernetes/azure.json", "nmi may read every Secret"}, []string{"helm show crds"}},
		"restricted": {"{forceNamespaced: true, mic: {existingSecret: x}, rbac: {secretNamespaces: [a]}}", nil, []string{"forceNamespaced=true", "mic reads", "every Secret"}},
		"managed":    {"operationMode: managed", []string{"az vmss identity assign"}, []string{"deployment/", "mic reads"}},
		"no job":     {"upgradeCRDs: false", []string{"helm show crds"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			notes := render(t, charts.Release{Values: values(t, test.values)}).Info.Notes
			for _, w := range test.want {
				if !contains(notes, w) {
					t.Errorf("no %q in\n%s", w, notes)
				}
			}
			for _, a := range test.absent {
				if contains(notes, a) {
					t.Errorf("%q in\n%s", a, notes)
				}
			}
			if bytes.ContainsAny([]byte(notes), "\t") {
				t.Error("a tab in the notes")
			}
		})
	}
}
