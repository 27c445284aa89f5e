{{- /* Names and labels are v1.6's: an upgrade must find its objects, and selectors cannot change. */}}

{{- define "workload-identity-webhook.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "workload-identity-webhook.labels" -}}
app: {{ include "workload-identity-webhook.name" . | quote }}
azure-workload-identity.io/system: "true"
chart: {{ include "workload-identity-webhook.name" . | quote }}
release: {{ .Release.Name | quote }}
{{- end -}}

{{- define "workload-identity-webhook.metadata" -}}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "workload-identity-webhook.labels" . | nindent 2 }}
{{- end -}}

{{- define "workload-identity-webhook.tag" -}}{{ .Values.image.release | default .Chart.AppVersion }}{{- end -}}

{{- /* An image beside the webhook's. Called with (dict "root" $ "name" "proxy"). */}}
{{- define "workload-identity-webhook.image" -}}
{{- $registry := dir .root.Values.image.repository -}}
{{ ternary "" (printf "%s/" $registry) (eq $registry ".") }}{{ .name }}:{{ include "workload-identity-webhook.tag" .root }}
{{- end -}}

{{- /* The port of /metrics; nothing if it is not served. */}}
{{- define "workload-identity-webhook.metrics" -}}
{{- $addr := toString .Values.metricsAddr -}}
{{- if ne $addr "0" -}}{{ splitList ":" $addr | last }}{{- end -}}
{{- end -}}

{{- define "workload-identity-webhook.doctor" -}}{{ if ne (toString .Values.doctor.mode) "off" }}{{ .Values.doctor.mode }}{{ end }}{{- end -}}
