package charts_test

import (
	"testing"

	"github.com/lanyard-id/lanyard/deploy/charts"
)

var podIdentity = subject{
	chart: charts.PodIdentity, namespace: "kube-system",
	programs: map[string]string{"mic": "mic", "nmi": "nmi"},
	effects:  podIdentityEffects,
	parts: map[string]presence{
		"everything by default": {"{}", []string{"Deployment aad-pod-identity-mic", "DaemonSet aad-pod-identity-nmi", "AzurePodIdentityException mic", "AzurePodIdentityException aks-addon-exception",
			"PodDisruptionBudget mic-pdb", "Job aad-pod-identity-crds", "ValidatingAdmissionPolicy access.lanyard.id", "ValidatingAdmissionPolicyBinding access.lanyard.id"}, []string{"Secret aad-pod-identity-mic", "ClusterRole aad-pod-identity-view"}},
		"no exceptions":           {`installMICException: "false"`, nil, []string{"AzurePodIdentityException mic", "AzurePodIdentityException aks-addon-exception"}},
		"managed mode has no mic": {"{operationMode: managed, adminsecret: {cloud: c, subscriptionID: s, resourceGroup: g, vmType: vmss, tenantID: t, clientID: c, clientSecret: x}, podMonitor: {enabled: true}}", []string{"AzurePodIdentityException aks-addon-exception", "PodMonitor aad-pod-identity-nmi"}, []string{"Deployment aad-pod-identity-mic", "Secret aad-pod-identity-mic", "AzurePodIdentityException mic", "PodMonitor aad-pod-identity-mic", "ClusterRole aad-pod-identity-mic", "PodDisruptionBudget mic-pdb"}},
		"no rights":               {"{rbac: {enabled: false, createUserFacingClusterRoles: true}}", nil, []string{"ServiceAccount aad-pod-identity-nmi", "ClusterRole aad-pod-identity-nmi", "ClusterRole aad-pod-identity-mic", "ClusterRole aad-pod-identity-view", "ServiceAccount aad-pod-identity-crds", "ClusterRole lanyard-access-approver"}},
		"no requests":             {"accessRequests: {enabled: false}", nil, []string{"ValidatingAdmissionPolicy access.lanyard.id", "ClusterRole lanyard-access-approver"}},
		"no job":                  {"upgradeCRDs: false", nil, []string{"Job aad-pod-identity-crds", "ClusterRole aad-pod-identity-crds"}},
		"no budget":               {"mic: {podDisruptionBudget: null}", nil, []string{"PodDisruptionBudget mic-pdb"}},
	},
	mistakes: map[string]mistake{
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
	},
	notes: map[string]notes{
		"by default": {"{}", []string{"rollout status deployment/aad-pod-identity-mic", "aadpodidbinding: my-app", "forceNamespaced=true", "mic reads /etc/kubernetes/azure.json", "nmi may read every Secret"}, []string{"helm show crds"}},
		"restricted": {"{forceNamespaced: true, mic: {existingSecret: x}, rbac: {secretNamespaces: [a]}}", nil, []string{"forceNamespaced=true", "mic reads", "every Secret"}},
		"managed":    {"operationMode: managed", []string{"az vmss identity assign"}, []string{"deployment/", "mic reads"}},
		"no job":     {"upgradeCRDs: false", []string{"helm show crds"}, nil},
	},
}

// Values of the old chart that --reuse-values puts in the place of this one's:
// the message must come before any template stumbles over what is missing.
func TestReusedDefaultsOfTheOldChartAreNamed(t *testing.T) {
	c := podIdentity.load(t)
	c.Values = values(t, `{image: {repository: mcr.microsoft.com/oss/azure/aad-pod-identity}, operationMode: standard, adminsecret: {}, forceNamespaced: "false",
  mic: {tag: v1.8.17, image: mic, leaderElection: {}, customCloud: {}}, nmi: {tag: v1.8.17, image: nmi}, rbac: {enabled: true, allowAccessToSecrets: true}}`)
	_, err := charts.Render(t.Context(), c, charts.Release{Upgrade: true})
	if err == nil || !contains(err.Error(), "--reset-then-reuse-values") {
		t.Errorf("error %v", err)
	}
}

var podIdentityEffects = map[string]effect{
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
