{{- define "afp.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "afp.account" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "afp.name" .) .Values.serviceAccount.name }}{{ else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- /* Rights for pods are the cluster's: two releases must not share the name. */ -}}
{{- define "afp.clusterName" -}}
{{ printf "%s-%s" .Release.Namespace (include "afp.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "afp.labels" -}}
app.kubernetes.io/name: {{ include "afp.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "afp.selector" -}}
app.kubernetes.io/name: {{ include "afp.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* `config` weighs more than the values that have a name of their own. */ -}}
{{- define "afp.config" -}}
{{- $pods := dict "label_selector" .Values.intercept.labelSelector "api" "on" -}}
{{- $agents := dict "cgroups" (list) "pods" $pods -}}
{{- $intercept := dict "enabled" .Values.intercept.enabled "datapath" .Values.intercept.datapath "on_failure" .Values.intercept.onFailure "https" .Values.intercept.https "agents" $agents -}}
{{- $explicit := dict "enabled" .Values.explicit.enabled "port_range_start" (int .Values.explicit.portRangeStart) -}}
{{- $base := dict "site" .Values.site "intercept" $intercept "explicit" $explicit -}}
{{- mergeOverwrite $base (deepCopy .Values.config) | toYaml -}}
{{- end }}

{{- define "afp.statusPort" -}}
{{- $explicit := default dict .Values.config.explicit -}}
{{- $status := default dict .Values.config.status -}}
{{- int (default (default .Values.explicit.portRangeStart $explicit.port_range_start) $status.port) -}}
{{- end }}
