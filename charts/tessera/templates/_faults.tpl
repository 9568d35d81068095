{{/* A line for each value that this version does not have, and each part that is missing. */}}
{{- define "tessera.valueFaults" -}}
{{- $values := .values -}}
{{- $known := .known -}}
{{- $removed := .removed -}}
{{- $path := .path -}}
{{- range $key, $value := $values -}}
{{- $at := printf "%s%s" $path $key -}}
{{- $optional := printf "%s?" $key -}}
{{- $part := get $known $key | default (get $known $optional) -}}
{{- if hasKey $removed $at }}
{{ $at }}: {{ get $removed $at }} Remove it; after --reuse-values, which repeats the old chart's defaults, write --reset-then-reuse-values.
{{- else if not (or (hasKey $known $key) (hasKey $known $optional)) }}
{{ $at }} is no value of this version; {{ trimSuffix "." $path | default "the chart" }} has: {{ keys $known | sortAlpha | join ", " | replace "?" "" }}.
{{- else if and (kindIs "map" $part) (kindIs "map" $value) -}}
{{- include "tessera.valueFaults" (dict "values" $value "known" $part "removed" $removed "path" (printf "%s." $at)) -}}
{{- end -}}
{{- end -}}
{{- range $key, $part := $known -}}
{{- if and (kindIs "map" $part) (not (hasSuffix "?" $key)) (not (hasKey $values $key)) }}
{{ $path }}{{ $key }} is missing: leave it out instead of setting it to null; after --reuse-values, which repeats the old chart's defaults, write --reset-then-reuse-values.
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A line for each thing that the gateway needs and the values or the cluster do not have. */}}
{{- define "tessera.gatewayFaults" -}}
{{- if .Values.gateway.enabled -}}
{{- $gateway := .Values.gateway -}}
{{- $database := $gateway.database.secretName -}}
{{- $namespace := .Release.Namespace -}}
{{- $kubectl := printf "kubectl -n %s" $namespace -}}
{{- $createDatabase := printf "%s create secret generic %s --from-literal=%s='postgresql://USER:PASSWORD@HOST/tessera?sslmode=verify-full'" $kubectl ($database | default "gateway-database") $gateway.database.urlKey -}}
{{- $createTls := printf "%s create secret tls %s --cert=tls.crt --key=tls.key" $kubectl ($gateway.tls.secretName | default "gateway-tls") -}}
{{- if not .Values.webhook.enabled }}
gateway.enabled needs webhook.enabled, since gateways trust the operator by its certificate: write webhook.enabled=true, or gateway.enabled=false for no gateway.
{{- end }}
{{- if not (hasKey $gateway.database "secretName") }}
gateway.database.secretName is missing: name the Secret with the URL of a PostgreSQL database, for example gateway-database after `{{ $createDatabase }}`.
{{- else if and (gt (int $gateway.replicaCount) 1) (not $database) }}
gateway.replicaCount above 1 needs gateway.database.secretName: SQLite serves one pod.
{{- end }}
{{- if not (hasKey $gateway.tls "secretName") }}
gateway.tls.secretName is missing: name the Secret of a certificate, for example gateway-tls after `{{ $createTls }}`, or write "" where an HTTPRoute or an Ingress ends TLS.
{{- end }}
{{- if and $gateway.providers.enabled (has $gateway.providers.namespace (list $namespace (include "tessera.keysNamespace" .))) }}
gateway.providers.namespace: {{ $gateway.providers.namespace }} has other Secrets too: name a namespace for keys of providers alone, or leave the value out, and the chart creates {{ $namespace }}-providers.
{{- end }}
{{- if lookup "v1" "Namespace" "" "kube-system" -}}
{{- with $gateway.keysNamespace -}}
{{- if not (lookup "v1" "Namespace" "" .) }}
gateway.keysNamespace: namespace {{ . }} does not exist: kubectl create namespace {{ . }}, or leave the value out, and the chart creates {{ $namespace }}-keys.
{{- end -}}
{{- end -}}
{{- with $gateway.providers.namespace -}}
{{- if and $gateway.providers.enabled (not (lookup "v1" "Namespace" "" .)) }}
gateway.providers.namespace: namespace {{ . }} does not exist: kubectl create namespace {{ . }}, or leave the value out, and the chart creates {{ $namespace }}-providers.
{{- end -}}
{{- end -}}
{{- with $database -}}
{{- if not (hasKey ((lookup "v1" "Secret" $namespace .).data | default dict) $gateway.database.urlKey) }}
gateway.database.secretName: Secret {{ $namespace }}/{{ . }} with the key {{ $gateway.database.urlKey }} does not exist: {{ $createDatabase }}
{{- end -}}
{{- end -}}
{{- with $gateway.tls.secretName -}}
{{- if not (hasKey ((lookup "v1" "Secret" $namespace .).data | default dict) "tls.crt") }}
gateway.tls.secretName: Secret {{ $namespace }}/{{ . }} with a certificate does not exist: {{ $createTls }}
{{- end -}}
{{- end -}}
{{- $sqlite := $gateway.database.sqlite -}}
{{- if and (not $database) $sqlite.size (not $sqlite.storageClassName) (not (lookup "v1" "PersistentVolumeClaim" $namespace "tessera-gateway")) -}}
{{- $classes := list -}}
{{- $default := false -}}
{{- range (lookup "storage.k8s.io/v1" "StorageClass" "" "").items -}}
{{- $classes = append $classes .metadata.name -}}
{{- if eq (get (.metadata.annotations | default dict) "storageclass.kubernetes.io/is-default-class") "true" }}{{ $default = true }}{{ end -}}
{{- end -}}
{{- if not $default }}
the gateway keeps its SQLite file on a volume, and no StorageClass is the default{{ with $classes }} of {{ sortAlpha . | join ", " }}{{ end }}: name one by gateway.database.sqlite.storageClassName, or a PostgreSQL database by gateway.database.secretName, or write gateway.database.sqlite.size="" to lose usage records with the pod.
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
