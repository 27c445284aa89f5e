{{- /* What the schema cannot say. Every template begins with it: which one Helm renders first is not said. */}}
{{- define "aad-pod-identity.check" -}}
{{- $v := .Values -}}
{{- $old := contains "oss/azure/aad-pod-identity" (toString $v.image.repository) -}}
{{- range $c := list "mic" "nmi" -}}
{{- if or $old (regexMatch "^v?1\\.[0-8]\\." (toString (index $v $c).tag)) -}}
{{- fail (printf "\n\nThe values name the images of Pod Identity v1 (image.repository=%s, %s.tag=%s), which do not know the arguments of this version. Leave out image.repository, mic.tag and nmi.tag, or name copies of this version's images. After --reuse-values use --reset-then-reuse-values: --reuse-values also reuses the defaults of the old chart.\n" $v.image.repository $c (toString (index $v $c).tag)) -}}
{{- end -}}
{{- end -}}
{{- if and $v.adminsecret $v.mic.existingSecret -}}
{{- fail "\n\nadminsecret and mic.existingSecret are both set: set the one that holds mic's principal.\n" -}}
{{- end -}}
{{- with $v.adminsecret -}}
{{- range $key := ternary (list "cloud" "subscriptionID" "resourceGroup" "vmType" "tenantID") (list "cloud" "subscriptionID" "resourceGroup" "vmType" "tenantID" "clientID" "clientSecret") (eq (toString .useMSI) "true") -}}
{{- if not (index $v.adminsecret $key) -}}
{{- fail (printf "\n\nadminsecret.%s is missing.\n" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
