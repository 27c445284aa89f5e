package charts_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lanyard-id/lanyard/api/workloadidentity"
	"github.com/lanyard-id/lanyard/deploy/charts"
)

const tenant = "11111111-2222-3333-4444-555555555555"

var workloadIdentity = subject{
	chart: charts.WorkloadIdentity, namespace: workloadidentity.Namespace,
	must:     "azureTenantID: " + tenant,
	programs: map[string]string{"manager": "webhook", "federation": "federation"},
	effects:  workloadIdentityEffects,
	old:      v16Defaults,
	parts: map[string]presence{
		"everything by default": {"", []string{
			"ServiceAccount azure-wi-webhook-admin", "Role azure-wi-webhook-manager-role", "RoleBinding azure-wi-webhook-manager-rolebinding",
			"ClusterRole azure-wi-webhook-manager-role", "ClusterRoleBinding azure-wi-webhook-manager-rolebinding", "ConfigMap azure-wi-webhook-config",
			"Secret azure-wi-webhook-server-cert", "Service azure-wi-webhook-webhook-service", "Deployment azure-wi-webhook-controller-manager",
			"PodDisruptionBudget azure-wi-webhook-controller-manager", "MutatingWebhookConfiguration azure-wi-webhook-mutating-webhook-configuration",
		}, []string{"Service azure-wi-webhook-metrics", "ServiceMonitor azure-wi-webhook", "NetworkPolicy azure-wi-webhook", "Deployment lanyard-federation", "CustomResourceDefinition federationpolicies.lanyard.id"}},
		"no budget":                        {`podDisruptionBudget: {minAvailable: ""}`, nil, []string{"PodDisruptionBudget azure-wi-webhook-controller-manager"}},
		"a federation":                     {"federation: {enabled: true, existingSecret: x}", []string{"Deployment lanyard-federation", "ClusterRole lanyard-federation-probe", "ValidatingAdmissionPolicyBinding federation.lanyard.id", "CustomResourceDefinition federationpolicies.lanyard.id"}, []string{"Namespace default", "Namespace lanyard-system", "Secret lanyard-federation-azure"}},
		"a federation that does not probe": {"federation: {enabled: true, existingSecret: x, probe: false}", []string{"ClusterRole lanyard-federation"}, []string{"ClusterRole lanyard-federation-probe", "ClusterRoleBinding lanyard-federation-probe"}},
		"monitoring":                       {"{serviceMonitor: {enabled: true}, networkPolicy: {enabled: true}}", []string{"Service azure-wi-webhook-metrics", "ServiceMonitor azure-wi-webhook", "NetworkPolicy azure-wi-webhook"}, nil},
	},
	mistakes: map[string]mistake{
		"no tenant":                            {`azureTenantID: ""`, "azureTenantID is not set"},
		"a misspelt tenant":                    {"azureTenantId: x", "additional properties 'azureTenantId' not allowed"},
		"a tenant with blanks":                 {"azureTenantID: my tenant", "azureTenantID"},
		"a misspelt name in a group":           {"image: {tag: x}", "additional properties 'tag' not allowed"},
		"a tag in the repository":              {"image: {repository: \"r.example/webhook:v2\"}", "image/repository"},
		"v1.6's image":                         {"image: {repository: mcr.microsoft.com/oss/azure/workload-identity/webhook}", "--reset-then-reuse-values"},
		"v1.6's tag":                           {"image: {release: v1.6.0}", "image.release=v1.6.0"},
		"a failure policy that does not exist": {"failurePolicy: fail", "'Fail', 'Ignore'"},
		"a timeout that is too long":           {"timeoutSeconds: 31", "timeoutSeconds"},
		"a port that is none":                  {"service: {targetPort: https}", "targetPort"},
		"an address without port":              {"metricsAddr: localhost", "metricsAddr"},
		"another backend of metrics":           {"metricsBackend: stackdriver", "metricsBackend"},
		"a layout that does not exist":         {"tokenLayout: v1", "'v1.6', 'legacy'"},
		"a level that does not exist":          {"logLevel: loud", "logLevel"},
		"a cloud that does not exist":          {"azureEnvironment: Mars", "AzurePublicCloud|"},
		"an authority without https":           {"authorityHost: login.example", "authorityHost"},
		"a doctor without quotes":              {"doctor: {mode: off}", "doctor/mode"},
		"an interval without unit":             {"doctor: {interval: \"15\"}", "doctor/interval"},
		"an image without tag":                 {"proxy: {image: r.example/proxy}", "proxy/image"},
		"no replica":                           {"replicaCount: 0", "replicaCount"},
		"half an endpoint":                     {"customTokenEndpoint: {annotationSuffix: x}", "set both or none"},
		"an endpoint without annotation":       {"customTokenEndpoint: {azureKubernetesSniName: x}", "azureKubernetesSniName has no effect without"},
		"two authorities":                      {"customTokenEndpoint: {annotationSuffix: x, audience: other, azureKubernetesCaData: a, azureKubernetesCAConfigMapName: b}", "exclude each other"},
		"a selector without signer":            {`customTokenEndpoint: {annotationSuffix: x, audience: other, azureKubernetesCACTBLabelSelector: "{}"}`, "needs customTokenEndpoint.azureKubernetesCACTBSignerName"},
		"a federation of nobody":               {"federation: {enabled: true}", "(set: none)"},
		"a federation of two":                  {"federation: {enabled: true, existingSecret: x, azureJson: /x}", "federation.existingSecret and federation.azureJson"},
		"half a principal":                     {"federation: {enabled: true, adminSecret: {clientID: x}}", "needs clientID and clientSecret"},
		"a client id that is none":             {"federation: {enabled: true, clientID: my-id}", "federation/clientID"},
		"a monitor of nothing":                 {`{metricsAddr: "0", serviceMonitor: {enabled: true}}`, "serves no metrics"},
	},
	notes: map[string]notes{
		"by default": {"", []string{"rollout status deployment/azure-wi-webhook-controller-manager", "azure.workload.identity/client-id", "pod-security.kubernetes.io/enforce=restricted", tenant}, []string{"Ignore", "one replica", "no effect", "limits.cpu"}},
		"federation": {"federation: {enabled: true, clientID: " + tenant + "}", []string{"until a FederationPolicy", "system:serviceaccount:default:lanyard-federation"}, nil},
		"careless":   {"{failurePolicy: Ignore, replicaCount: 1, fullnameOverride: x, doctor: {mode: 'off'}, resources: {limits: {cpu: 100m}}}", []string{"has no identity", "doctor.mode=report", "let through without", "fullnameOverride has no effect", "limits.cpu delays"}, nil},
	},
}

var workloadIdentityEffects = map[string]effect{
	"nameOverride":                         {"nameOverride: id", []string{`app: "id"`, `chart: "id"`}},
	"fullnameOverride":                     {"fullnameOverride: x", nil},
	"replicaCount":                         {"replicaCount: 3", []string{"replicas: 3"}},
	"image.repository":                     {"image: {repository: r.example/w}", []string{`image: "r.example/w:dev"`, `PROXY_IMAGE: "r.example/proxy:dev"`, `PROXY_INIT_IMAGE: "r.example/proxy-init:dev"`}},
	"image.pullPolicy":                     {"image: {pullPolicy: Always}", []string{"imagePullPolicy: Always"}},
	"image.release":                        {"image: {release: t1}", []string{`image: "lanyard/webhook:t1"`, `PROXY_IMAGE: "lanyard/proxy:t1"`, `PROXY_INIT_IMAGE: "lanyard/proxy-init:t1"`}},
	"imagePullSecrets":                     {"imagePullSecrets: [{name: key}]", []string{"imagePullSecrets:", "- name: key"}},
	"nodeSelector":                         {"nodeSelector: {a: b}", []string{"a: b"}},
	"resources":                            {"resources: {limits: {cpu: 200m, memory: 64Mi}}", []string{"cpu: 200m", "memory: 64Mi"}},
	"tolerations":                          {"tolerations: [{key: k}]", []string{"- key: k"}},
	"affinity":                             {"affinity: {nodeAffinity: {a: b}}", []string{"nodeAffinity:"}},
	"topologySpreadConstraints":            {"topologySpreadConstraints: [{topologyKey: x}]", []string{"- topologyKey: x"}},
	"service.type":                         {"service: {type: NodePort}", []string{"type: NodePort"}},
	"service.port":                         {"service: {port: 8443}", []string{"- port: 8443", "port: 8443"}},
	"service.targetPort":                   {`{service: {targetPort: "10250"}, networkPolicy: {enabled: true}}`, []string{"containerPort: 10250", "- --webhook-addr=:10250", "- port: 10250"}},
	"azureEnvironment":                     {"azureEnvironment: AZURECHINACLOUD", []string{`AZURE_ENVIRONMENT: "AZURECHINACLOUD"`}},
	"azureTenantID":                        {"azureTenantID: other.example", []string{`AZURE_TENANT_ID: "other.example"`}},
	"authorityHost":                        {"authorityHost: https://login.example/", []string{`- "--authority-host=https://login.example/"`}},
	"logLevel":                             {"logLevel: debug", []string{"- --log-level=debug"}},
	"metricsAddr":                          {`metricsAddr: "127.0.0.1:8096"`, []string{"- --metrics-addr=127.0.0.1:8096", "containerPort: 8096"}},
	"metricsBackend":                       {`{metricsBackend: prometheus, serviceMonitor: {enabled: true}}`, []string{"kind: ServiceMonitor"}}, // its only value
	"priorityClassName":                    {"priorityClassName: p", []string{`priorityClassName: "p"`}},
	"mutatingWebhookAnnotations":           {`mutatingWebhookAnnotations: {admissions.enforcer/disabled: "true"}`, []string{`admissions.enforcer/disabled: "true"`}},
	"podLabels":                            {"podLabels: {a: b, app: mine}", []string{"a: b"}},
	"podAnnotations":                       {"podAnnotations: {a: b}", []string{"a: b"}},
	"mutatingWebhookNamespaceSelector":     {"mutatingWebhookNamespaceSelector: {matchLabels: {a: b}}", []string{"namespaceSelector:", "a: b"}},
	"failurePolicy":                        {"failurePolicy: Ignore", []string{"failurePolicy: Ignore"}},
	"timeoutSeconds":                       {"timeoutSeconds: 5", []string{"timeoutSeconds: 5"}},
	"podDisruptionBudget.minAvailable":     {"podDisruptionBudget: {minAvailable: 50%}", []string{"minAvailable: 50%"}},
	"podDisruptionBudget.maxUnavailable":   {"podDisruptionBudget: {maxUnavailable: 0}", []string{"maxUnavailable: 0"}},
	"revisionHistoryLimit":                 {"revisionHistoryLimit: 0", []string{"revisionHistoryLimit: 0"}},
	"tokenLayout":                          {"tokenLayout: legacy", []string{"- --token-layout=legacy"}},
	"audience":                             {"audience: api://other", []string{`- "--audience=api://other"`}},
	"tlsMinVersion":                        {`tlsMinVersion: "1.2"`, []string{"- --tls-min-version=1.2"}},
	"customTokenEndpoint.annotationSuffix": endpoint("", "- --custom-token-endpoint-annotation-suffix=identity-binding"),
	"customTokenEndpoint.audience":         endpoint("", `- "--custom-token-endpoint-audience=api://AKSIdentityBinding"`),
	"customTokenEndpoint.azureKubernetesTokenProxy":         endpoint(", azureKubernetesTokenProxy: https://proxy.example", `AZURE_KUBERNETES_TOKEN_PROXY: "https://proxy.example"`),
	"customTokenEndpoint.azureKubernetesSniName":            endpoint(", azureKubernetesSniName: sni.example", `AZURE_KUBERNETES_SNI_NAME: "sni.example"`),
	"customTokenEndpoint.azureKubernetesCaData":             endpoint(", azureKubernetesCaData: pem", `AZURE_KUBERNETES_CA_DATA: "pem"`),
	"customTokenEndpoint.azureKubernetesCAConfigMapName":    endpoint(", azureKubernetesCAConfigMapName: kube-root-ca.crt", `AZURE_KUBERNETES_CA_CONFIGMAP_NAME: "kube-root-ca.crt"`),
	"customTokenEndpoint.azureKubernetesCACTBSignerName":    endpoint(", azureKubernetesCACTBSignerName: s.example/x", `AZURE_KUBERNETES_CA_CTB_SIGNER_NAME: "s.example/x"`),
	"customTokenEndpoint.azureKubernetesCACTBLabelSelector": endpoint(`, azureKubernetesCACTBSignerName: s, azureKubernetesCACTBLabelSelector: '{"matchLabels":{"a":"b"}}'`, `AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR: "{\"matchLabels\":{\"a\":\"b\"}}"`),
	"proxy.image":                  {"proxy: {image: \"r.example/p:1\"}", []string{`PROXY_IMAGE: "r.example/p:1"`}},
	"proxy.initImage":              {"proxy: {initImage: \"r.example/i:1\"}", []string{`PROXY_INIT_IMAGE: "r.example/i:1"`}},
	"proxy.resources":              {"proxy: {resources: {limits: {memory: 50Mi}}}", []string{`- "--proxy-resources={\"limits\":{\"memory\":\"50Mi\"}}"`}},
	"doctor.mode":                  {"doctor: {mode: evict}", []string{"- --doctor=evict", "resources: [pods/eviction]"}},
	"doctor.interval":              {"{doctor: {interval: 5m}, mutatingWebhookNamespaceSelector: {matchLabels: {a: b}}}", []string{"- --doctor-interval=5m", "resources: [namespaces]"}},
	"serviceMonitor.enabled":       {"serviceMonitor: {enabled: true}", []string{"kind: ServiceMonitor", "component: metrics"}},
	"serviceMonitor.interval":      {"serviceMonitor: {enabled: true, interval: 15s}", []string{"interval: 15s"}},
	"serviceMonitor.scrapeTimeout": {"serviceMonitor: {enabled: true, scrapeTimeout: 5s}", []string{"scrapeTimeout: 5s"}},
	"serviceMonitor.labels":        {"serviceMonitor: {enabled: true, labels: {team: x}}", []string{"team: x"}},
	"networkPolicy.enabled":        {"networkPolicy: {enabled: true}", []string{"kind: NetworkPolicy", "- port: 9443", "- port: 9440", "- port: 8095"}},
	"networkPolicy.from":           {"networkPolicy: {enabled: true, from: [{ipBlock: {cidr: 10.0.0.0/28}}]}", []string{"cidr: 10.0.0.0/28"}},
	"networkPolicy.metricsFrom":    {"networkPolicy: {enabled: true, metricsFrom: [{namespaceSelector: {}}]}", []string{"- namespaceSelector: {}"}},
	"federation.enabled":           federation("", "kind: ValidatingAdmissionPolicy", "name: federatedidentities.lanyard.id", "image: lanyard/federation:dev", "helm.sh/resource-policy: keep", "- --leader-election-namespace=default", `- expression: request.userInfo.username == 'system:serviceaccount:default:lanyard-federation'`),
	"federation.image":             federation(`, image: "r.example/f:1"`, "image: r.example/f:1"),
	"federation.replicaCount":      federation(", replicaCount: 3", "replicas: 3"),
	"federation.resources":         federation(", resources: {limits: {memory: 99Mi}}", "memory: 99Mi"),
	"federation.probe":             federation(", probe: false", "- --probe=false"),
	"federation.clientID":          {"federation: {enabled: true, clientID: " + tenant + "}", []string{"azure.workload.identity/client-id: " + tenant, `azure.workload.identity/use: "true"`, "- name: CLOUD"}},
	"federation.existingSecret":    federation("", "name: mine"),
	"federation.adminSecret":       {"federation: {enabled: true, adminSecret: {clientID: c, clientSecret: s}}", []string{`CLIENT_SECRET: "s"`, `TENANT_ID: "` + tenant + `"`, `CLOUD: "AzurePublicCloud"`, "name: lanyard-federation-azure"}},
	"federation.azureJson":         {"federation: {enabled: true, azureJson: /etc/kubernetes/azure.json}", []string{"- --cloudconfig=/etc/kubernetes/azure.json", "path: /etc/kubernetes/azure.json", "- mountPath: /etc/kubernetes/azure.json", "runAsUser: 0"}},
	"federation.args":              federation(", args: [--interval=5m]", "- --interval=5m"),
	"extraEnv":                     {"extraEnv: [{name: HTTPS_PROXY, value: x}]", []string{"- name: HTTPS_PROXY"}},
	"extraVolumes":                 {"extraVolumes: [{name: v, emptyDir: {}}]", []string{"volumes:", "- emptyDir: {}"}},
	"extraVolumeMounts":            {"extraVolumeMounts: [{name: v, mountPath: /v}]", []string{"volumeMounts:", "- mountPath: /v"}},
}

// federation enables the controller, and says what more the values say.
func federation(more string, lines ...string) effect {
	return effect{"federation: {enabled: true, existingSecret: mine" + more + "}", lines}
}

// endpoint sets a custom token endpoint and what more the values say.
func endpoint(more, line string) effect {
	return effect{"customTokenEndpoint: {annotationSuffix: identity-binding, audience: api://AKSIdentityBinding" + more + "}", []string{line}}
}

// Selectors are v1.6's, whatever else the values say: they cannot change.
func TestPodLabelsCannotTakeTheSelectorAway(t *testing.T) {
	for _, c := range objects(t, workloadIdentity.with(t, "podLabels: {app: mine, release: other, team: a}")) {
		if c.GetKind() != "Deployment" {
			continue
		}
		labels := c.Object["spec"].(map[string]any)["template"].(map[string]any)["metadata"].(map[string]any)["labels"]
		want := map[string]any{
			"app": "workload-identity-webhook", "azure-workload-identity.io/system": "true", "chart": "workload-identity-webhook", "release": "workload-identity-webhook",
			"team": "a",
		}
		if d := cmp.Diff(want, labels); d != "" {
			t.Error(d)
		}
	}
}
