{{- /* Names and labels, as v1's chart makes them: an upgrade must find its objects, and selectors cannot change. */}}

{{- define "aad-pod-identity.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 59 | trimSuffix "-" -}}
{{- end -}}

{{- define "aad-pod-identity.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- $name = .Release.Name -}}
{{- else -}}
{{- $name = printf "%s-%s" .Release.Name $name -}}
{{- end -}}
{{- $name | trunc 59 | trimSuffix "-" -}}
{{- end -}}

{{- define "aad-pod-identity.mic" -}}{{ include "aad-pod-identity.name" . }}-mic{{- end -}}
{{- define "aad-pod-identity.nmi" -}}{{ include "aad-pod-identity.name" . }}-nmi{{- end -}}
{{- define "aad-pod-identity.crds" -}}{{ include "aad-pod-identity.name" . }}-crds{{- end -}}

{{- define "aad-pod-identity.selector" -}}
app.kubernetes.io/name: {{ include "aad-pod-identity.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "aad-pod-identity.labels" -}}
{{ include "aad-pod-identity.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* Called with (dict "root" $ "component" "mic"). */}}
{{- define "aad-pod-identity.image" -}}
{{- $c := index .root.Values .component -}}
{{ .root.Values.image.repository }}/{{ $c.image }}:{{ $c.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "aad-pod-identity.standard" -}}{{ if eq .Values.operationMode "standard" }}true{{ end }}{{- end -}}
{{- define "aad-pod-identity.secret" -}}{{ .Values.mic.existingSecret | default (include "aad-pod-identity.mic" .) }}{{- end -}}
{{- define "aad-pod-identity.leader.namespace" -}}{{ .Values.mic.leaderElection.namespace | default "default" }}{{- end -}}
{{- define "aad-pod-identity.leader.name" -}}{{ .Values.mic.leaderElection.name | default "aad-pod-identity-mic" }}{{- end -}}
