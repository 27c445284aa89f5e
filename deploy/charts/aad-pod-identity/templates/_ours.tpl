{{- /* Arguments that v1 did not have. A number may be 0, which "with" takes for nothing. */}}

{{- define "aad-pod-identity.mic.args" -}}
{{- with .Values.mic.leaderElection.instance }}
- --leader-election-instance={{ . }}
{{- end }}
{{- if .Values.mic.leaderElection.endpointsRecord }}
- --leader-election-endpoints-record
{{- end }}
{{- with .Values.mic.windowLead }}
- --window-lead={{ . }}
{{- end }}
{{- with .Values.mic.startupTaint }}
- --startup-taint={{ . }}
{{- end }}
{{- with .Values.customUserAgent }}
- {{ printf "--custom-user-agent=%s" . | quote }}
{{- end }}
{{- end -}}

{{- define "aad-pod-identity.nmi.args" -}}
- --host-token-callers={{ join "," .Values.nmi.hostTokenCallers }}
{{- if .Values.nmi.blockHostNetwork }}
- --block-host-network
{{- end }}
{{- if not .Values.nmi.guardSources }}
- --guard-sources=false
{{- end }}
{{- if ne (toString .Values.nmi.podMaxInflight) "" }}
- --pod-max-inflight={{ int .Values.nmi.podMaxInflight }}
{{- end }}
{{- if ne (toString .Values.nmi.podQps) "" }}
- --pod-qps={{ int .Values.nmi.podQps }}
{{- end }}
{{- with .Values.nmi.prefetchResources }}
- {{ printf "--prefetch-resources=%s" (join "," .) | quote }}
{{- end }}
{{- if .Values.nmi.allowCrossNamespaceSecrets }}
- --allow-cross-namespace-secrets
{{- end }}
{{- with .Values.nmi.allowedAuthorityHosts }}
- {{ printf "--allowed-authority-hosts=%s" (join "," .) | quote }}
{{- end }}
{{- with .Values.customUserAgent }}
- {{ printf "--custom-user-agent=%s" . | quote }}
{{- end }}
{{- end -}}

{{- /* mic must run where all nodes bear the taint that it takes away. */}}
{{- define "aad-pod-identity.mic.tolerations" -}}
{{- with .Values.mic.tolerations }}
{{ toYaml . }}
{{- end }}
{{- with .Values.mic.startupTaint }}
- key: {{ . }}
  operator: Exists
{{- end }}
{{- end -}}
