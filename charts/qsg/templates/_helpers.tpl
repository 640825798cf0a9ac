{{- define "qsg.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "qsg.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "qsg.pullSecrets" -}}
{{- range $n, $one := .Values.imagePullSecrets }}{{ if $n }},{{ end }}{{ $one.name }}{{ end }}
{{- end }}

{{- define "qsg.selector" -}}
app.kubernetes.io/name: qsg-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "qsg.labels" -}}
{{ include "qsg.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "qsg.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "qsg.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{/* Where the lease is: a namespace that is watched. */}}
{{- define "qsg.leaseNamespace" -}}
{{- $watch := .Values.watchNamespaces }}
{{- if or (empty $watch) (has .Release.Namespace $watch) }}{{ .Release.Namespace }}{{ else }}{{ first $watch }}{{ end }}
{{- end }}

{{/* Selects the namespaces that are watched. */}}
{{- define "qsg.watched" -}}
{{- if .Values.watchNamespaces }}matchNames: {{ toJson .Values.watchNamespaces }}{{ else }}any: true{{ end }}
{{- end }}

{{- define "qsg.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "qsg.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the operator may do where its resources are. Secrets: by name only, it cannot list them. */}}
{{- define "qsg.rules" -}}
- apiGroups: [qsg.dev]
  resources: [queuesharinggroups, sharedchannels, sharedqueues, queuemanagers]
  verbs: [get, list, watch]
- apiGroups: [qsg.dev]
  resources: [queuesharinggroups/status, sharedchannels/status, sharedqueues/status, queuemanagers/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [list, watch]
{{- end }}
