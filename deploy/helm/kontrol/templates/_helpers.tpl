{{/* The name of everything: the release's, with that of the chart unless it says so. */}}
{{- define "kontrol.name" -}}
{{- if contains "kontrol" .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- else -}}{{ printf "%s-kontrol" .Release.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{- define "kontrol.masters" -}}{{ include "kontrol.name" . }}-masters{{- end -}}
{{- define "kontrol.etcd" -}}{{ include "kontrol.name" . }}-etcd{{- end -}}

{{/* What selects the pods of a component: dict "root" . "component" "master" */}}
{{- define "kontrol.selector" -}}
app.kubernetes.io/name: kontrol
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "kontrol.labels" -}}
{{ include "kontrol.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{- define "kontrol.store" -}}
{{- if .Values.store -}}{{ .Values.store }}
{{- else if .Values.etcd.enabled -}}
{{- $etcd := include "kontrol.etcd" . -}}
etcd://{{ range $index := until 3 }}{{ if $index }},{{ end }}{{ $etcd }}-{{ $index }}.{{ $etcd }}:2379{{ end }}
{{- else -}}memory:{{- end -}}
{{- end -}}

{{- define "kontrol.scheme" -}}{{ ternary "HTTP" "HTTPS" .Values.insecure }}{{- end -}}

{{/* Where slaves find the masters. */}}
{{- define "kontrol.endpoint" -}}
{{ ternary "http" "https" .Values.insecure }}://{{ include "kontrol.masters" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* The names that the certificate of the masters is for. */}}
{{- define "kontrol.names" -}}
{{- $namespace := .Release.Namespace -}}
{{- range $service := list (include "kontrol.masters" .) (include "kontrol.name" .) }}
- {{ $service }}
- {{ $service }}.{{ $namespace }}.svc
- {{ $service }}.{{ $namespace }}.svc.cluster.local
{{- end }}
- "*.{{ include "kontrol.masters" . }}.{{ $namespace }}.svc"
- localhost
{{- end -}}

{{/* Whether a master tells of itself as a pod. */}}
{{- define "kontrol.is-pod" -}}{{ if or .Values.mixed .Values.upstream }}yes{{ end }}{{- end -}}

{{/* The security contexts of a pod and of a container: the strictest of Kubernetes' standards. */}}
{{- define "kontrol.pod-security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- define "kontrol.container-security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What a slave, or a master that is a pod, reads of its pod. */}}
{{- define "kontrol.podinfo" -}}
downwardAPI:
  items:
    - path: labels
      fieldRef:
        fieldPath: metadata.labels
    - path: annotations
      fieldRef:
        fieldPath: metadata.annotations
    - path: name
      fieldRef:
        fieldPath: metadata.name
{{- end -}}
