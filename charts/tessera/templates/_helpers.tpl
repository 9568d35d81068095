{{- define "tessera.name" -}}tessera-operator{{- end -}}

{{- define "tessera.clusterName" -}}
{{- printf "tessera-operator-%s" .Release.Namespace | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tessera.webhook" -}}tessera-webhook{{- end -}}

{{- define "tessera.batchRole" -}}
{{- printf "tessera-batch-runner-%s" .Release.Namespace | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tessera.selector" -}}
app.kubernetes.io/name: tessera-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tessera.labels" -}}
{{ include "tessera.selector" . }}
app.kubernetes.io/part-of: tessera
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}
