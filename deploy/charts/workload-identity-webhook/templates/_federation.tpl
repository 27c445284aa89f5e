{{- /* Changes the Deployment of the federation controller by the values. It prints nothing. */}}
{{- define "workload-identity-webhook.federation" -}}
{{- $v := .root.Values -}}
{{- $f := $v.federation -}}
{{- $template := .deployment.spec.template -}}
{{- $pod := $template.spec -}}
{{- $container := first $pod.containers -}}
{{- $_ := set .deployment.spec "replicas" (int $f.replicaCount) -}}
{{- $_ := set $container "image" ($f.image | default (include "workload-identity-webhook.image" (dict "root" .root "name" "federation"))) -}}
{{- $_ := set $container "imagePullPolicy" $v.image.pullPolicy -}}
{{- $_ := set $container "resources" ($f.resources | default dict) -}}
{{- $_ := set $pod "nodeSelector" ($v.nodeSelector | default dict) -}}
{{- $_ := set $pod "tolerations" ($v.tolerations | default list) -}}
{{- $_ := set $pod "imagePullSecrets" ($v.imagePullSecrets | default list) -}}
{{- $_ := set $pod "priorityClassName" ($v.priorityClassName | default "") -}}
{{- $args := $container.args -}}
{{- if not $f.probe -}}{{- $args = append $args "--probe=false" -}}{{- end -}}
{{- /* One way to prove who it is, and no trace of the others. */ -}}
{{- $_ := unset $container "envFrom" -}}
{{- if $f.clientID -}}
{{- $_ := set $container "env" (list (dict "name" "CLOUD" "value" ($v.azureEnvironment | default "AzurePublicCloud"))) -}}
{{- else -}}
{{- $_ := unset $template.metadata.labels "azure.workload.identity/use" -}}
{{- end -}}
{{- if or $f.existingSecret $f.adminSecret -}}
{{- $_ := set $container "envFrom" (list (dict "secretRef" (dict "name" ($f.existingSecret | default "lanyard-federation-azure")))) -}}
{{- end -}}
{{- with $f.adminSecret -}}
{{- $_ := set $template.metadata "annotations" (dict "checksum/config" (toJson . | sha256sum)) -}}
{{- end -}}
{{- with $f.azureJson -}}
{{- $args = append $args (printf "--cloudconfig=%s" .) -}}
{{- $_ := set $pod "securityContext" (dict "runAsUser" 0 "seccompProfile" (dict "type" "RuntimeDefault")) -}}
{{- $_ := set $pod "volumes" (list (dict "name" "azure-json" "hostPath" (dict "path" . "type" "File"))) -}}
{{- $_ := set $container "volumeMounts" (list (dict "name" "azure-json" "mountPath" . "readOnly" true)) -}}
{{- end -}}
{{- $_ := set $container "args" (concat $args ($f.args | default list)) -}}
{{- end -}}
