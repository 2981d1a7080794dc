{{/* Labels of everything the chart makes. The first is what kube-proxy's pods are found by, with another value. */}}
{{- define "sluice.labels" -}}
k8s-app: sluice
app.kubernetes.io/name: sluice
{{- end }}

{{- define "sluice.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* The ConfigMap that the agent reads; empty if it reads none. */}}
{{- define "sluice.configMap" -}}
{{- if .Values.kubeProxyConfig.inline }}sluice{{ else }}{{ .Values.kubeProxyConfig.configMap }}{{ end }}
{{- end }}

{{/* The KubeProxyConfiguration of the values, whole. */}}
{{- define "sluice.inline" -}}
{{- $type := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" -}}
{{- toYaml (merge $type .Values.kubeProxyConfig.inline) }}
{{- end }}
