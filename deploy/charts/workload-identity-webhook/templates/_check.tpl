{{- /* What the schema cannot say. Every template begins with it: which one Helm renders first is not said. */}}
{{- define "workload-identity-webhook.check" -}}
{{- $v := .Values -}}
{{- $image := $v.image | default dict -}}
{{- if or (contains "oss/azure/workload-identity" (toString $image.repository)) (regexMatch "^v?(0|1)\\.[0-9]+\\.[0-9]+" (toString $image.release)) -}}
{{- fail (printf "\n\nThe values name an image of azure-workload-identity (image.repository=%s, image.release=%s), which does not know the arguments of this version. Leave out image.repository and image.release, or name a copy of this version's image. After --reuse-values use --reset-then-reuse-values: --reuse-values also reuses the defaults of the old chart.\n" (toString $image.repository) (toString $image.release)) -}}
{{- end -}}
{{- if not $v.azureTenantID -}}
{{- fail "\n\nazureTenantID is not set: it is the id of the Entra tenant of your identities (az account show --query tenantId --output tsv).\n" -}}
{{- end -}}
{{- $e := $v.customTokenEndpoint -}}
{{- if ne (empty $e.annotationSuffix) (empty $e.audience) -}}
{{- fail "\n\ncustomTokenEndpoint.annotationSuffix and customTokenEndpoint.audience belong together: set both or none.\n" -}}
{{- end -}}
{{- $settings := list -}}
{{- range $name := list "azureKubernetesTokenProxy" "azureKubernetesSniName" "azureKubernetesCaData" "azureKubernetesCAConfigMapName" "azureKubernetesCACTBSignerName" "azureKubernetesCACTBLabelSelector" -}}
{{- if index $e $name -}}{{- $settings = append $settings (printf "customTokenEndpoint.%s" $name) -}}{{- end -}}
{{- end -}}
{{- if and $settings (not $e.annotationSuffix) -}}
{{- fail (printf "\n\n%s has no effect without customTokenEndpoint.annotationSuffix and customTokenEndpoint.audience.\n" (first $settings)) -}}
{{- end -}}
{{- $authorities := list -}}
{{- range $name := list "azureKubernetesCaData" "azureKubernetesCAConfigMapName" "azureKubernetesCACTBSignerName" -}}
{{- if index $e $name -}}{{- $authorities = append $authorities (printf "customTokenEndpoint.%s" $name) -}}{{- end -}}
{{- end -}}
{{- if gt (len $authorities) 1 -}}
{{- fail (printf "\n\n%s exclude each other: set one.\n" (join " and " $authorities)) -}}
{{- end -}}
{{- if and $e.azureKubernetesCACTBLabelSelector (not $e.azureKubernetesCACTBSignerName) -}}
{{- fail "\n\ncustomTokenEndpoint.azureKubernetesCACTBLabelSelector needs customTokenEndpoint.azureKubernetesCACTBSignerName.\n" -}}
{{- end -}}
{{- if and $v.serviceMonitor.enabled (not (include "workload-identity-webhook.metrics" .)) -}}
{{- fail "\n\nserviceMonitor.enabled is true but metricsAddr serves no metrics.\n" -}}
{{- end -}}
{{- $f := $v.federation -}}
{{- if $f.enabled -}}
{{- $ways := list -}}
{{- range $name := list "clientID" "existingSecret" "adminSecret" "azureJson" -}}
{{- if index $f $name -}}{{- $ways = append $ways (printf "federation.%s" $name) -}}{{- end -}}
{{- end -}}
{{- if ne (len $ways) 1 -}}
{{- fail (printf "\n\nThe federation controller acts as one principal: set one of federation.clientID, federation.existingSecret, federation.adminSecret and federation.azureJson (set: %s).\n" (join " and " $ways | default "none")) -}}
{{- end -}}
{{- with $f.adminSecret -}}
{{- if not (and .clientID .clientSecret) -}}
{{- fail "\n\nfederation.adminSecret needs clientID and clientSecret.\n" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
