{{/* Generated from the types by `make generate`; edits are lost. */}}
{{- define "tessera.knownValues" -}}
replicaCount: null
image:
  repository: null
  tag: null
  pullPolicy: null
batchImage:
  repository: null
  tag: null
imagePullSecrets: null
serviceAccount:
  create: null
  name: null
  annotations: null
podAnnotations: null
podLabels: null
extraEnv: null
platform:
  imageRegistry: null
  imagePullSecrets: null
  hubEndpoint: null
  httpsProxy: null
  noProxy: null
  caConfigMap: null
  priorityClasses: null
engineEgress:
  restricted: null
  networks: null
  namespaces: null
models:
  allowPickles: null
podTemplate:
  allowedKeys: null
classes:
  Interactive:
    ttftP95: null
    itlP95: null
    queueTarget: null
    minReplicas: null
    tiers: null
  Standard:
    ttftP95: null
    itlP95: null
    queueTarget: null
    minReplicas: null
    tiers: null
  Batch:
    ttftP95: null
    itlP95: null
    queueTarget: null
    minReplicas: null
    tiers: null
catalogs:
  gpus: null
  models: null
node:
  enabled: null
  partition: null
  image:
    repository: null
    tag: null
  runtimeClassName: null
  nodeSelector: null
  tolerations: null
  resources: null
gateway:
  enabled: null
  replicaCount: null
  drainSeconds: null
  image:
    repository: null
    tag: null
  tls:
    secretName: null
  service:
    type: null
    annotations: null
  database:
    secretName: null
    urlKey: null
    retentionDays: null
    sqlite:
      size: null
      storageClassName: null
  tracing:
    endpoint: null
  autoscaling:
    enabled: null
    minReplicas: null
    maxReplicas: null
    targetCpuPercent: null
  keysNamespace: null
  releaseNamespaceKeys: null
  tokenAudience: null
  oidc: null
  defaultRateLimits?:
    requests?:
      perSecond: null
      perMinute: null
      perDay: null
    inputTokens?:
      perSecond: null
      perMinute: null
      perDay: null
    outputTokens?:
      perSecond: null
      perMinute: null
      perDay: null
    totalTokens?:
      perSecond: null
      perMinute: null
      perDay: null
    concurrentRequests: null
    maxContextTokens: null
    maxOutputTokens: null
  providers:
    enabled: null
    namespace: null
    allowedRanges: null
  httpRoute:
    enabled: null
    parentRefs: null
    hostnames: null
  ingress:
    enabled: null
    className: null
    host: null
    annotations: null
    tlsSecretName: null
  podAnnotations: null
  extraEnv: null
  resources: null
  nodeSelector: null
  tolerations: null
  affinity: null
prometheus:
  url: null
  namespaces: null
  monitorLabels: null
  job: null
  gpuJob: null
  secretName: null
  tokenFile: null
  caFile: null
webhook:
  enabled: null
  certificateDurationDays: null
  certManager:
    enabled: null
    issuerRef:
      kind: null
      name: null
  timeoutSeconds: null
watch:
  namespaces: null
mig:
  enabled: null
  managerNamespace: null
hpa:
  enabled: null
gates:
  require:
    namespaces: null
    classes: null
dashboard:
  enabled: null
  labels: null
rules:
  enabled: null
  labels: null
requireBudget: null
logLevel: null
resources: null
nodeSelector: null
tolerations: null
affinity: null
global: null
{{- end -}}
{{- define "tessera.removedValues" -}}
gateway.requireNameGrants: gone since 0.2.0, where a tenant gets models of others by grants alone (docs/tasks/publish-models.md).
{{- end -}}
