{{/* Every name and every label is made here, and nowhere else. */}}

{{- define "resforge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where the RayJobs live. */}}
{{- define "resforge.jobsNamespace" -}}
{{- default .Release.Namespace .Values.jobs.namespace -}}
{{- end -}}

{{/* What selects one component's pods: (list root component). It must never change in an upgrade. */}}
{{- define "resforge.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* What every pod of the release has in common. */}}
{{- define "resforge.releaseSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels of an object: (list root component). */}}
{{- define "resforge.labels" -}}
{{- $root := index . 0 -}}
{{ include "resforge.selector" . }}
app.kubernetes.io/part-of: resforge
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* name, namespace and labels: (list root component). */}}
{{- define "resforge.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "resforge.fullname" $root }}-{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "resforge.labels" . | nindent 2 }}
{{- end -}}

{{/* An image by digest, else by tag, else by the chart's version: (list root image). */}}
{{- define "resforge.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{/* The ServiceAccount of api, controller, migrations or jobs: (list root component). */}}
{{- define "resforge.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $account := (index $root.Values (index . 1)).serviceAccount -}}
{{- if $account.name -}}
{{- $account.name -}}
{{- else if $account.create -}}
{{- include "resforge.fullname" $root }}-{{ index . 1 -}}
{{- else -}}
default
{{- end -}}
{{- end -}}

{{- define "resforge.serviceAccountObject" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := (index $root.Values $component).serviceAccount -}}
{{- if $account.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "resforge.serviceAccount" . }}
  namespace: {{ ternary (include "resforge.jobsNamespace" $root) $root.Release.Namespace (eq $component "jobs") }}
  labels:
    {{- include "resforge.labels" . | nindent 4 }}
  {{- with $account.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
# A pod that talks to the Kubernetes API says so itself.
automountServiceAccountToken: false
{{- if and (eq $component "jobs") $root.Values.jobs.imagePullSecrets }}
imagePullSecrets:
  {{- range $root.Values.jobs.imagePullSecrets }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The secrets that pods take what is secret from. */}}
{{- define "resforge.postgresqlSecret" -}}
{{- default (printf "%s-postgresql" (include "resforge.fullname" .)) .Values.postgresql.existingSecret -}}
{{- end -}}

{{- define "resforge.s3Secret" -}}
{{- if .Values.s3.enabled -}}
{{- default (printf "%s-s3" (include "resforge.fullname" .)) .Values.s3.existingSecret -}}
{{- else -}}
{{- .Values.objectStorage.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* The one in the jobs' namespace, which trainers get; empty for workload identity. */}}
{{- define "resforge.trainerSecret" -}}
{{- if .Values.objectStorage.trainerExistingSecret -}}
{{- .Values.objectStorage.trainerExistingSecret -}}
{{- else if or .Values.s3.enabled (eq (include "resforge.jobsNamespace" .) .Release.Namespace) -}}
{{- include "resforge.s3Secret" . -}}
{{- end -}}
{{- end -}}

{{- define "resforge.s3Endpoint" -}}
{{- if .Values.s3.enabled -}}
{{- printf "http://%s-s3.%s.svc.%s:9000" (include "resforge.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- else -}}
{{- .Values.objectStorage.endpoint -}}
{{- end -}}
{{- end -}}

{{/* Pod Security "restricted", which every pod of the chart keeps to: (dict "user" uid). */}}
{{- define "resforge.podSecurity" -}}
runAsNonRoot: true
{{- with .user }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "resforge.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What all our pods say of themselves and where they may run: (list root component). */}}
{{- define "resforge.podMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "resforge.labels" . | nindent 2 }}
  {{- with $root.Values.pods.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- /* A container's name as its only one: `kubectl logs` needs no -c. */}}
  kubectl.kubernetes.io/default-container: {{ index . 1 }}
  {{- with $root.Values.pods.annotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "resforge.podPlacement" -}}
# Without this Kubernetes would set RESFORGE_PORT=tcp://... for a Service named resforge, which is a setting of ours.
enableServiceLinks: false
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.pods.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* (list root component constraints) */}}
{{- define "resforge.topologySpread" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- with index . 2 }}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ .topologyKey }}
    maxSkew: {{ .maxSkew }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "resforge.selector" (list $root $component) | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{/* The settings that every process of the control plane reads (services/settings.py). */}}
{{- define "resforge.databaseEnv" -}}
- name: RESFORGE_DATABASE_URL
{{- if .Values.postgresql.enabled }}
  value: postgresql+psycopg://resforge@{{ include "resforge.fullname" . }}-postgresql:5432/resforge
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "resforge.postgresqlSecret" . }}
      key: password
{{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.existingSecret }}
      key: {{ .Values.database.existingSecretKey }}
{{- end }}
{{- end -}}

{{- define "resforge.commonEnv" -}}
{{ include "resforge.databaseEnv" . }}
- name: RESFORGE_S3_BUCKET
  value: {{ .Values.objectStorage.bucket | quote }}
{{- with include "resforge.s3Endpoint" . }}
- name: RESFORGE_S3_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.objectStorage.publicEndpoint }}
- name: RESFORGE_S3_PUBLIC_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: AWS_DEFAULT_REGION
  value: {{ .Values.objectStorage.region | quote }}
- name: RESFORGE_TRAINER_S3_REGION
  value: {{ .Values.objectStorage.region | quote }}
{{- with include "resforge.s3Secret" . }}
{{- $secret := . }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
{{- end }}
{{- end }}
- name: RESFORGE_LOG_LEVEL
  value: {{ .Values.logLevel }}
- name: RESFORGE_LAUNCHER
  value: kuberay
- name: RESFORGE_POOLS_FILE
  value: /etc/resforge/pools.yaml
- name: RESFORGE_KUBE_NAMESPACE
  value: {{ include "resforge.jobsNamespace" . }}
- name: RESFORGE_TRAINER_IMAGE
  value: {{ include "resforge.image" (list . .Values.images.trainer) }}
- name: RESFORGE_RAY_SERVICE_ACCOUNT
  value: {{ include "resforge.serviceAccount" (list . "jobs") }}
- name: RESFORGE_RAY_VERSION
  value: {{ .Values.jobs.rayVersion | quote }}
{{- with include "resforge.trainerSecret" . }}
- name: RESFORGE_TRAINER_ENV_SECRET
  value: {{ . }}
{{- end }}
{{- /* The one folder that may be written, for whatever wants a home or a cache. */}}
- name: HOME
  value: /tmp
- name: MPLCONFIGDIR
  value: /tmp/matplotlib
{{- with .Values.pods.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* /tmp and the pools, which a pod of the control plane has mounted. */}}
{{- define "resforge.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
- name: pools
  mountPath: /etc/resforge
  readOnly: true
{{- end -}}

{{- define "resforge.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
- name: pools
  configMap:
    name: {{ include "resforge.fullname" . }}-pools
{{- end -}}

{{/* A password that an upgrade keeps: (list namespace secret key length). */}}
{{- define "resforge.kept" -}}
{{- $known := (lookup "v1" "Secret" (index . 0) (index . 1)).data -}}
{{- if $known -}}
{{- index $known (index . 2) -}}
{{- else -}}
{{- randAlphaNum (index . 3) | b64enc -}}
{{- end -}}
{{- end -}}

{{/* Peers that are one set of pods: (dict "namespace" name "podLabels" labels). */}}
{{- define "resforge.peer" -}}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ .namespace }}
  podSelector:
    matchLabels:
      {{- toYaml .podLabels | nindent 6 }}
{{- end -}}

{{/* Ports of a rule: a list of numbers. */}}
{{- define "resforge.ports" -}}
{{- range . }}
- port: {{ . }}
  protocol: TCP
{{- end }}
{{- end -}}

{{/* What no schema can say, in words that name the value. */}}
{{- define "resforge.check" -}}
{{- if and .Values.postgresql.enabled .Values.database.existingSecret -}}
{{- fail "database.existingSecret and postgresql.enabled: give one of them; the first names a database of yours, the second starts one" -}}
{{- end -}}
{{- if not (or .Values.postgresql.enabled .Values.database.existingSecret) -}}
{{- fail "database.existingSecret: give the secret that holds the PostgreSQL URL, or set postgresql.enabled to start one" -}}
{{- end -}}
{{- if not .Values.objectStorage.bucket -}}
{{- fail "objectStorage.bucket: give the bucket that jobs' checkpoints, metrics and logs go to" -}}
{{- end -}}
{{- if and .Values.s3.enabled (or .Values.objectStorage.endpoint .Values.objectStorage.existingSecret) -}}
{{- fail "objectStorage.endpoint, objectStorage.existingSecret and s3.enabled: the first two name an S3 of yours, the last starts one; leave one or the other out (s3.existingSecret holds the keys of the one inside)" -}}
{{- end -}}
{{- if and .Values.objectStorage.existingSecret (not (include "resforge.trainerSecret" .)) -}}
{{- fail (printf "objectStorage.trainerExistingSecret: give the secret in the namespace %s that holds the trainers' keys; objectStorage.existingSecret is in %s, where they can't read it" (include "resforge.jobsNamespace" .) .Release.Namespace) -}}
{{- end -}}
{{- if and .Values.jobs.createNamespace (eq (include "resforge.jobsNamespace" .) .Release.Namespace) -}}
{{- fail "jobs.createNamespace: jobs.namespace is the release's own namespace, which is there; name another, or leave this out" -}}
{{- end -}}
{{- if and .Values.api.autoscaling.enabled (gt (int .Values.api.autoscaling.minReplicas) (int .Values.api.autoscaling.maxReplicas)) -}}
{{- fail (printf "api.autoscaling.minReplicas: %d is more than maxReplicas, which is %d" (int .Values.api.autoscaling.minReplicas) (int .Values.api.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.host: give the name by which users reach the API" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.parentRefs: give the Gateway that the route belongs to" -}}
{{- end -}}
{{- range $name, $image := pick .Values.images "services" "trainer" -}}
{{- if and (eq $image.tag "latest") (not $image.digest) -}}
{{- fail (printf "images.%s.tag: latest does not say what runs; give a version or a digest" $name) -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.pools -}}
{{- if has .name $names -}}
{{- fail (printf "pools: two are named %s; a job could not say which it means" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if and $.Values.kueue.enabled (not .queue) -}}
{{- fail (printf "pools: %s has no queue; with kueue.enabled each pool names its LocalQueue" .name) -}}
{{- end -}}
{{- if and $.Values.kueue.enabled (not .node_selector) -}}
{{- fail (printf "pools: %s has no node_selector; with kueue.enabled it is what ties a pool's workers to its quota" .name) -}}
{{- end -}}
{{- $hostPath := and .cache .cache.host_path -}}
{{- if and (or .ipc_lock $hostPath) (not (has .name $.Values.jobs.podSecurityExceptions)) -}}
{{- fail (printf "pools: %s has %s, which Pod Security \"restricted\" does not admit; name it in jobs.podSecurityExceptions to allow that in the namespace %s" .name (ternary "ipc_lock" "cache.host_path" (default false .ipc_lock)) (include "resforge.jobsNamespace" $)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.jobs.podSecurityExceptions -}}
{{- if not (has . $names) -}}
{{- fail (printf "jobs.podSecurityExceptions: there is no pool %s; pools are %s" . (join ", " $names)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Changed pools or secrets restart the pods that read them. Secrets are looked up in the cluster, at each upgrade. */}}
{{- define "resforge.checksums" -}}
{{- $secrets := list -}}
{{- range list .Values.database.existingSecret (include "resforge.s3Secret" .) (include "resforge.postgresqlSecret" .) -}}
{{- if . -}}
{{- $secrets = append $secrets (lookup "v1" "Secret" $.Release.Namespace .).data -}}
{{- end -}}
{{- end -}}
checksum/pools: {{ include "resforge.poolsFile" . | sha256sum }}
checksum/secrets: {{ toJson $secrets | sha256sum }}
{{- end -}}

{{/* The pools file, as services/launchers reads it. */}}
{{- define "resforge.poolsFile" -}}
pools:
  {{- toYaml .Values.pools | nindent 2 }}
heads:
  {{- toYaml .Values.heads | nindent 2 }}
{{- end -}}

{{/* The tolerations of a pool, or of heads, in Kubernetes' spelling. */}}
{{- define "resforge.flavorTolerations" -}}
{{- with .tolerations }}
tolerations:
  {{- range . }}
  {{- $own := dict }}
  {{- range $key, $value := . }}{{ $own = set $own (ternary "tolerationSeconds" $key (eq $key "toleration_seconds")) $value }}{{ end }}
  - {{ toJson $own }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* What pods may reach, each a rule of a NetworkPolicy. An empty `to` is anywhere. */}}
{{- define "resforge.egressDns" -}}
{{- $dns := .Values.networkPolicy.dns -}}
- to:
    {{- include "resforge.peer" $dns | nindent 4 }}
    {{- range $dns.cidrs }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{- define "resforge.egressDatabase" -}}
{{- if .Values.postgresql.enabled -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "resforge.selector" (list . "postgresql") | nindent 10 }}
  ports:
    {{- include "resforge.ports" (list 5432) | nindent 4 }}
{{- else -}}
{{- include "resforge.egressTo" (dict "to" .Values.networkPolicy.database.to "ports" (list .Values.networkPolicy.database.port)) -}}
{{- end -}}
{{- end -}}

{{- define "resforge.egressS3" -}}
{{- if .Values.s3.enabled -}}
- to:
    - namespaceSelector:
        matchLabels:
          kubernetes.io/metadata.name: {{ .Release.Namespace }}
      podSelector:
        matchLabels:
          {{- include "resforge.selector" (list . "s3") | nindent 10 }}
  ports:
    {{- include "resforge.ports" (list 9000) | nindent 4 }}
{{- else -}}
{{- include "resforge.egressTo" .Values.networkPolicy.objectStorage -}}
{{- end -}}
{{- end -}}

{{- define "resforge.egressKubernetes" -}}
{{- include "resforge.egressTo" .Values.networkPolicy.kubernetesApi -}}
{{- end -}}

{{- define "resforge.egressTo" -}}
- ports:
    {{- include "resforge.ports" .ports | nindent 4 }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
