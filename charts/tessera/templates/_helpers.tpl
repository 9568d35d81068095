{{- define "tessera.name" -}}tessera-operator{{- end -}}

{{- define "tessera.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "tessera.name" .) -}}
{{- end -}}

{{- define "tessera.clusterName" -}}
{{- printf "tessera-operator-%s" .Release.Namespace | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The name under which the operator acts. */}}
{{- define "tessera.user" -}}
{{- printf "system:serviceaccount:%s:%s" .Release.Namespace (include "tessera.serviceAccount" .) -}}
{{- end -}}

{{- define "tessera.prepullNamespace" -}}
{{- printf "%s-prepull" (.Release.Namespace | trunc 55) -}}
{{- end -}}

{{/* Where the keys of tenants are: in a namespace of their own, or in one that the values name. */}}
{{- define "tessera.keysNamespace" -}}
{{- .Values.gateway.keysNamespace | default (printf "%s-keys" (.Release.Namespace | trunc 58)) -}}
{{- end -}}

{{/* Where the keys of outside providers are. */}}
{{- define "tessera.providersNamespace" -}}
{{- .Values.gateway.providers.namespace | default (printf "%s-providers" (.Release.Namespace | trunc 53)) -}}
{{- end -}}

{{/* For one release: "true" where the gateway also reads keys in the release's namespace, where they
were by default; Helm finds them itself in a cluster. */}}
{{- define "tessera.releaseNamespaceKeys" -}}
{{- $found := .Values.gateway.releaseNamespaceKeys -}}
{{- range (lookup "v1" "Secret" .Release.Namespace "").items -}}
{{- if eq .type "tessera.dev/keys" }}{{ $found = true }}{{ end -}}
{{- end -}}
{{- if $found }}true{{ end -}}
{{- end -}}

{{/* "true" where an autoscaler, or somebody by /scale, has set the number of gateways. Helm would
conflict with what they wrote, or be overruled by an autoscaler before it deletes that one: so the
autoscaler stays, pinned to one number. */}}
{{- define "tessera.gatewayWasScaled" -}}
{{- $found := lookup "autoscaling/v2" "HorizontalPodAutoscaler" .Release.Namespace "tessera-gateway" -}}
{{- $deployment := lookup "apps/v1" "Deployment" .Release.Namespace "tessera-gateway" -}}
{{- range ($deployment.metadata).managedFields -}}
{{- if eq (.subresource | default "") "scale" }}{{ $found = true }}{{ end -}}
{{- end -}}
{{- if $found }}true{{ end -}}
{{- end -}}

{{- define "tessera.gatewayServiceUrl" -}}
http{{ if .Values.gateway.tls.secretName }}s{{ end }}://tessera-gateway.{{ .Release.Namespace }}.svc/v1
{{- end -}}

{{/* The URL that clients use, as far as the values say it. */}}
{{- define "tessera.gatewayUrl" -}}
{{- $gateway := .Values.gateway -}}
{{- if and $gateway.httpRoute.enabled $gateway.httpRoute.hostnames -}}
https://{{ first $gateway.httpRoute.hostnames }}/v1
{{- else if $gateway.ingress.enabled -}}
http{{ if $gateway.ingress.tlsSecretName }}s{{ end }}://{{ $gateway.ingress.host }}/v1
{{- else -}}
{{ include "tessera.gatewayServiceUrl" . }}
{{- end -}}
{{- end -}}

{{- define "tessera.webhook" -}}tessera-webhook{{- end -}}

{{- define "tessera.metricsReader" -}}tessera-metrics-reader{{- end -}}

{{- define "tessera.batchRole" -}}
{{- printf "tessera-batch-runner-%s" .Release.Namespace | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tessera.selector" -}}
app.kubernetes.io/name: tessera-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The entries that the installation adds to the catalog, as JSON; nothing without any. */}}
{{- define "tessera.catalogs" -}}
{{- if or .Values.catalogs.gpus .Values.catalogs.models }}{{ .Values.catalogs | toJson }}{{ end }}
{{- end -}}

{{- define "tessera.labels" -}}
{{ include "tessera.selector" . }}
app.kubernetes.io/part-of: tessera
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tessera.nodeLabels" -}}
app.kubernetes.io/name: tessera-node
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: tessera
app.kubernetes.io/component: node
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tessera.gatewayLabels" -}}
app.kubernetes.io/name: tessera-gateway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: tessera
app.kubernetes.io/component: gateway
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* How the operator queries Prometheus. */}}
{{- define "tessera.prometheusEnv" -}}
{{- with .Values.prometheus.url }}
- name: TESSERA_PROMETHEUS_URL
  value: {{ . | quote }}
{{- end }}
{{- with .Values.prometheus.job }}
- name: TESSERA_PROMETHEUS_JOB
  value: {{ . | quote }}
{{- end }}
{{- with .Values.prometheus.gpuJob }}
- name: TESSERA_PROMETHEUS_GPU_JOB
  value: {{ . | quote }}
{{- end }}
{{- if .Values.prometheus.secretName }}
- name: TESSERA_PROMETHEUS_SECRET_DIRECTORY
  value: /etc/tessera/prometheus
{{- end }}
{{- with .Values.prometheus.tokenFile }}
- name: TESSERA_PROMETHEUS_TOKEN_FILE
  value: {{ . | quote }}
{{- end }}
{{- with .Values.prometheus.caFile }}
- name: TESSERA_PROMETHEUS_CA_FILE
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* An image of the chart; it comes from the mirror unless its repository names a registry. */}}
{{- define "tessera.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := $root.Values.platform.imageRegistry -}}
{{- $first := splitList "/" $image.repository | first -}}
{{- $named := regexMatch "[.:]|^localhost$" $first -}}
{{- if and $registry (not $named) -}}{{ trimSuffix "/" $registry }}/{{- end -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
