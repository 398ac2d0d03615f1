{{/* The container of a slave beside an app, for the list of containers of a pod. The pod needs the labels `app` and `role`, those of
     networkPolicy.clientLabels, and what "kontrol.slave.volumes" says. */}}
{{- define "kontrol.slave" -}}
- name: slave
  image: {{ .Values.image.registry }}{{ .Values.slave.image.repository }}:{{ .Values.slave.image.tag | default .Chart.AppVersion }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  env:
    - name: KONTROL_MASTER
      value: {{ include "kontrol.endpoint" . }}
    {{- if .Values.insecure }}
    # It runs commands for whoever reaches the masters.
    - name: KONTROL_INSECURE
      value: "yes"
    {{- else }}
    - name: KONTROL_CA
      value: /etc/kontrol/slave/ca.crt
    - name: KONTROL_TOKEN_FILE
      value: /etc/kontrol/slave/token
    {{- end }}
    - name: KONTROL_PODINFO
      value: /etc/podinfo
    - name: KONTROL_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
    - name: KONTROL_NODE
      valueFrom:
        fieldRef:
          fieldPath: spec.nodeName
    - name: KONTROL_LOG_FORMAT
      value: json
  resources:
    {{- toYaml .Values.slave.resources | nindent 4 }}
  securityContext:
    {{- include "kontrol.container-security" . | nindent 4 }}
  volumeMounts:
    - name: podinfo
      mountPath: /etc/podinfo
      readOnly: true
    {{- if not .Values.insecure }}
    - name: kontrol
      mountPath: /etc/kontrol/slave
      readOnly: true
    {{- end }}
    - name: tmp
      mountPath: /tmp
{{- end -}}

{{- define "kontrol.slave.volumes" -}}
- name: podinfo
  {{- include "kontrol.podinfo" . | nindent 2 }}
{{- if not .Values.insecure }}
- name: kontrol
  secret:
    secretName: {{ .Values.slave.secret }}
    defaultMode: 0440
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end -}}
