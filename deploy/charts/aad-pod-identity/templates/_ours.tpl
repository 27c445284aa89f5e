{{- /* Arguments that v1 did not have. */}}

{{- define "aad-pod-identity.mic.args" -}}
{{- end -}}

{{- define "aad-pod-identity.nmi.args" -}}
{{- end -}}
