package charts_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
)

// v16Templates make what the chart of azure-workload-identity v1.6 made, as far
// as an upgrade can see it: names, labels, selectors, and what must go. In place
// of v1.6's program runs this version's, as one that others keep the
// certificate of.
const v16Templates = `
{{- define "labels" }}{app: {{ .Chart.Name }}, azure-workload-identity.io/system: "true", chart: {{ .Chart.Name }}, release: {{ .Release.Name }}}{{ end }}
{{- define "metadata" }}namespace: "{{ .Release.Namespace }}", labels: {{ include "labels" . }}{{ end }}
apiVersion: v1
kind: ServiceAccount
metadata: {name: azure-wi-webhook-admin, {{ include "metadata" . }}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: azure-wi-webhook-manager-role, {{ include "metadata" . }}}
rules: [{apiGroups: [""], resources: [secrets], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: azure-wi-webhook-manager-rolebinding, {{ include "metadata" . }}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: azure-wi-webhook-manager-role}
subjects: [{kind: ServiceAccount, name: azure-wi-webhook-admin, namespace: "{{ .Release.Namespace }}"}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: azure-wi-webhook-manager-role, labels: {{ include "labels" . }}}
rules:
- {apiGroups: [""], resources: [serviceaccounts], verbs: [get, list, watch]}
- {apiGroups: [admissionregistration.k8s.io], resources: [mutatingwebhookconfigurations], verbs: [get, list, watch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: azure-wi-webhook-manager-rolebinding, labels: {{ include "labels" . }}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: azure-wi-webhook-manager-role}
subjects: [{kind: ServiceAccount, name: azure-wi-webhook-admin, namespace: "{{ .Release.Namespace }}"}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: azure-wi-webhook-config, {{ include "metadata" . }}}
data: {AZURE_ENVIRONMENT: AzurePublicCloud, AZURE_TENANT_ID: "{{ .Values.azureTenantID }}"}
---
apiVersion: v1
kind: Secret
metadata: {name: azure-wi-webhook-server-cert, {{ include "metadata" . }}}
---
apiVersion: v1
kind: Service
metadata: {name: azure-wi-webhook-webhook-service, {{ include "metadata" . }}}
spec: {type: ClusterIP, ports: [{port: 443, targetPort: 9443}], selector: {{ include "labels" . }}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: azure-wi-webhook-controller-manager, {{ include "metadata" . }}}
spec:
  replicas: {{ .Values.replicaCount }}
  revisionHistoryLimit: 10
  selector: {matchLabels: {{ include "labels" . }}}
  template:
    metadata: {annotations: {}, labels: {{ include "labels" . }}}
    spec:
      serviceAccountName: azure-wi-webhook-admin
      priorityClassName: system-cluster-critical
      nodeSelector: {kubernetes.io/os: linux}
      containers:
      - name: manager
        image: lanyard/webhook:dev
        imagePullPolicy: IfNotPresent
        args: [--log-level=info, "--metrics-addr=:8095", --metrics-backend=prometheus, --disable-cert-rotation]
        env: [{name: POD_NAMESPACE, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}}]
        envFrom: [{configMapRef: {name: azure-wi-webhook-config}}]
        ports:
        - {name: metrics, containerPort: 8095, protocol: TCP}
        - {name: webhook-server, containerPort: 9443, protocol: TCP}
        - {name: healthz, containerPort: 9440, protocol: TCP}
        livenessProbe: {httpGet: {path: /healthz, port: healthz}, initialDelaySeconds: 15}
        readinessProbe: {httpGet: {path: /readyz, port: healthz}, periodSeconds: 5}
        resources: {limits: {cpu: 100m, memory: 30Mi}, requests: {cpu: 100m, memory: 20Mi}}
        securityContext:
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
          readOnlyRootFilesystem: true
          runAsGroup: 65532
          runAsNonRoot: true
          runAsUser: 65532
          seccompProfile: {type: RuntimeDefault}
        volumeMounts: [{name: cert, mountPath: /certs, readOnly: true}]
      volumes: [{name: cert, secret: {defaultMode: 420, secretName: azure-wi-webhook-server-cert}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: azure-wi-webhook-controller-manager, {{ include "metadata" . }}}
spec: {minAvailable: 1, selector: {matchLabels: {{ include "labels" . }}}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: azure-wi-webhook-mutating-webhook-configuration, labels: {{ include "labels" . }}}
webhooks:
- name: mutation.azure-workload-identity.io
  admissionReviewVersions: [v1, v1beta1]
  clientConfig: {service: {name: azure-wi-webhook-webhook-service, namespace: "{{ .Release.Namespace }}", path: /mutate-v1-pod}}
  failurePolicy: Fail
  matchPolicy: Equivalent
  reinvocationPolicy: IfNeeded
  sideEffects: None
  objectSelector: {matchLabels: {azure.workload.identity/use: "true"}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
`

// v16Defaults are the values of that chart, with its defaults.
const v16Defaults = `{replicaCount: 2, image: {repository: mcr.microsoft.com/oss/azure/workload-identity/webhook, pullPolicy: IfNotPresent, release: v1.6.0},
  imagePullSecrets: [], nodeSelector: {kubernetes.io/os: linux}, resources: {limits: {cpu: 100m, memory: 30Mi}, requests: {cpu: 100m, memory: 20Mi}},
  tolerations: [], affinity: {}, topologySpreadConstraints: [], service: {type: ClusterIP, port: 443, targetPort: 9443},
  azureEnvironment: AzurePublicCloud, logLevel: info, metricsAddr: ":8095", metricsBackend: prometheus, priorityClassName: system-cluster-critical,
  mutatingWebhookAnnotations: {}, podLabels: {}, podAnnotations: {}, mutatingWebhookNamespaceSelector: {},
  podDisruptionBudget: {minAvailable: 1, maxUnavailable: null}, revisionHistoryLimit: 10,
  customTokenEndpoint: {annotationSuffix: "", audience: "", azureKubernetesCaData: "", azureKubernetesSniName: "", azureKubernetesTokenProxy: "",
    azureKubernetesCAConfigMapName: "", azureKubernetesCACTBSignerName: "", azureKubernetesCACTBLabelSelector: ""},
  extraEnv: [], extraVolumes: [], extraVolumeMounts: []}`

func v16Chart() *chart.Chart {
	return &chart.Chart{
		Metadata: &chart.Metadata{APIVersion: "v2", Name: "workload-identity-webhook", Version: "1.6.0", AppVersion: "v1.6.0"},
		Values: map[string]any{
			"image":        map[string]any{"repository": "mcr.microsoft.com/oss/azure/workload-identity/webhook", "pullPolicy": "IfNotPresent", "release": "v1.6.0"},
			"replicaCount": 2, "azureTenantID": "",
		},
		Templates: []*common.File{{Name: "templates/all.yaml", Data: []byte(v16Templates)}},
	}
}

// v16Certificates is what v1.6 writes into its Secret: RSA keys, an authority
// of ten years and a serving certificate of one.
func v16Certificates(t testing.TB, name string) map[string][]byte {
	t.Helper()
	now := time.Now()
	pair := func(template, parent *x509.Certificate, parentKey *rsa.PrivateKey) (*x509.Certificate, *rsa.PrivateKey, []byte, []byte) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		if parent == nil {
			parent, parentKey = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	}
	ca, caKey, caPEM, caKeyPEM := pair(&x509.Certificate{
		SerialNumber: big.NewInt(0), Subject: pkix.Name{CommonName: "azure-workload-identity-ca", Organization: []string{"azure-workload-identity"}},
		DNSNames: []string{"azure-workload-identity-ca"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}, nil, nil)
	_, _, leafPEM, leafKeyPEM := pair(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}, ca, caKey)
	return map[string][]byte{"ca.crt": caPEM, "ca.key": caKeyPEM, "tls.crt": leafPEM, "tls.key": leafKeyPEM}
}
