{{- /* Whether the values want an object: something or nothing. */}}
{{- define "cloudhub.wanted" }}
{{- $kind := .object.kind }}
{{- $values := .root.Values }}
{{- if and (not $values.enrolment.enabled) (regexMatch "^cloudhub-enrolments?$" .object.metadata.name) }}
{{- else if and (eq $kind "NetworkPolicy") (not $values.networkPolicies.enabled) }}
{{- else if and (eq $kind "PriorityClass") (not $values.priorityClass.create) }}
{{- else }}yes{{ end }}
{{- end }}

{{- /* Puts the values into an object. Templates below change it and print nothing. */}}
{{- define "cloudhub.adjust" }}
{{- $object := .object }}
{{- $values := .root.Values }}
{{- $kind := $object.kind }}
{{- $name := $object.metadata.name }}
{{- if ne $kind "PriorityClass" }}
{{- $_ := set $object.metadata "namespace" .root.Release.Namespace }}
{{- end }}
{{- if eq $kind "Deployment" }}
{{- include "cloudhub.deployment" . }}
{{- else if eq $kind "HorizontalPodAutoscaler" }}
{{- $own := get $values (trimPrefix "cloudhub-" $name) }}
{{- $_ := set $object.spec "minReplicas" $own.minReplicas }}
{{- $_ := set $object.spec "maxReplicas" $own.maxReplicas }}
{{- else if eq $kind "PersistentVolumeClaim" }}
{{- $storage := (get $values (trimPrefix "cloudhub-" $name)).storage }}
{{- $_ := set $object.spec.resources.requests "storage" $storage.size }}
{{- with $storage.className }}{{ $_ := set $object.spec "storageClassName" . }}{{ end }}
{{- /* What was accepted outlives the release. */}}
{{- $_ := set $object.metadata "annotations" (dict "helm.sh/resource-policy" "keep") }}
{{- else if eq $kind "PriorityClass" }}
{{- $_ := set $object.metadata "name" $values.priorityClass.name }}
{{- else if eq $kind "NetworkPolicy" }}
{{- include "cloudhub.policy" . }}
{{- else if eq $kind "Service" }}
{{- include "cloudhub.service" . }}
{{- else if has $kind (list "ServiceMonitor" "PrometheusRule") }}
{{- $_ := set $object.metadata "labels" (merge $object.metadata.labels $values.monitoring.labels) }}
{{- if and (eq $kind "PrometheusRule") (not $values.enrolment.enabled) }}
{{- range $object.spec.groups }}
{{- $rules := list }}
{{- range .rules }}{{ if not (hasPrefix "CloudHubEnrolment" (.alert | default "")) }}{{ $rules = append $rules . }}{{ end }}{{ end }}
{{- $_ := set . "rules" $rules }}
{{- end }}
{{- end }}
{{- else if and (eq $name "cloudhub-grpc-revoked") $values.revoked }}
{{- $_ := set $object.data "revoked" $values.revoked }}
{{- end }}
{{- end }}

{{- define "cloudhub.policy" }}
{{- $policies := .root.Values.networkPolicies }}
{{- if eq .object.metadata.name "database" }}
{{- $egress := first .object.spec.egress }}
{{- $_ := set (first $egress.ports) "port" $policies.database.port }}
{{- $to := list }}
{{- range $policies.database.cidrs }}{{ $to = append $to (dict "ipBlock" (dict "cidr" .)) }}{{ end }}
{{- with $to }}{{ $_ := set $egress "to" . }}{{ end }}
{{- else if eq .object.metadata.name "metrics" }}
{{- $from := first (first .object.spec.ingress).from }}
{{- $_ := set $from.namespaceSelector.matchLabels "kubernetes.io/metadata.name" .root.Values.monitoring.namespace }}
{{- end }}
{{- end }}

{{- define "cloudhub.service" }}
{{- $values := .root.Values }}
{{- $owners := dict "cloudhub-edge" $values.connector "cloudhub-enrolment" $values.enrolment }}
{{- with get $owners .object.metadata.name }}
{{- $spec := $.object.spec }}
{{- $_ := set $spec "type" .service.type }}
{{- if eq .service.type "ClusterIP" }}{{ $_ := unset $spec "externalTrafficPolicy" }}{{ end }}
{{- with .service.annotations }}{{ $_ := set $.object.metadata "annotations" . }}{{ end }}
{{- with .service.loadBalancerClass }}{{ $_ := set $spec "loadBalancerClass" . }}{{ end }}
{{- with .service.loadBalancerSourceRanges }}{{ $_ := set $spec "loadBalancerSourceRanges" . }}{{ end }}
{{- if and .quic (ne (get (.quic | default dict) "exposed") "same-service") }}
{{- $ports := list }}
{{- range $spec.ports }}{{ if ne (.protocol | default "TCP") "UDP" }}{{ $ports = append $ports . }}{{ end }}{{ end }}
{{- $_ := set $spec "ports" $ports }}
{{- end }}
{{- end }}
{{- end }}

{{- define "cloudhub.deployment" }}
{{- $values := .root.Values }}
{{- $spec := .object.spec }}
{{- $pod := $spec.template.spec }}
{{- with $values.pods.nodeSelector }}{{ $_ := set $pod "nodeSelector" . }}{{ end }}
{{- with $values.pods.tolerations }}{{ $_ := set $pod "tolerations" . }}{{ end }}
{{- with $values.image.pullSecrets }}
{{- $secrets := list }}
{{- range . }}{{ $secrets = append $secrets (dict "name" .) }}{{ end }}
{{- $_ := set $pod "imagePullSecrets" $secrets }}
{{- end }}
{{- with $values.pods.annotations }}
{{- $_ := set $spec.template.metadata "annotations" (merge ($spec.template.metadata.annotations | default dict) .) }}
{{- end }}
{{- $service := get .object.metadata.labels "app.kubernetes.io/component" }}
{{- if $service }}
{{- $own := get $values $service }}
{{- if and (eq $values.profile "production") $own.replicas }}{{ $_ := set $spec "replicas" $own.replicas }}{{ end }}
{{- if $pod.priorityClassName }}
{{- if $values.priorityClass.name }}{{ $_ := set $pod "priorityClassName" $values.priorityClass.name }}
{{- else }}{{ $_ := unset $pod "priorityClassName" }}{{ end }}
{{- end }}
{{- $secrets := dict "cloudhub-server" $values.secrets.server "cloudhub-service" $values.secrets.service "cloudhub-edge-ca" $values.secrets.edgeCa "cloudhub-enrolment-ca" $values.secrets.enrolmentCa "cloudhub-database" $values.secrets.database }}
{{- range $pod.volumes }}
{{- if .secret }}{{ $_ := set .secret "secretName" (get $secrets .secret.secretName) }}{{ end }}
{{- end }}
{{- range concat ($pod.initContainers | default list) $pod.containers }}
{{- $_ := set . "image" (include "cloudhub.image" (dict "own" $own "root" $.root)) }}
{{- if $values.image.pullPolicy }}{{ $_ := set . "imagePullPolicy" $values.image.pullPolicy }}{{ end }}
{{- $given := dict }}
{{- if eq .name $service }}
{{- $_ := set . "resources" (mergeOverwrite .resources $own.resources) }}
{{- range $name, $value := $own.settings }}
{{- /* As JSON, for a number as text is 2e+06. */}}
{{- $text := kindIs "string" $value | ternary $value (toJson $value) }}
{{- $variable := printf "CLOUDHUB_%s_%s" (upper $service) (upper $name) }}
{{- $_ := set $given $variable (dict "name" $variable "value" $text) }}
{{- end }}
{{- if $values.jaeger.enabled }}
{{- range $variable, $value := dict "OTEL_EXPORTER_OTLP_ENDPOINT" "http://otel-collector:4317" "OTEL_EXPORTER_OTLP_INSECURE" "true" "OTEL_TRACES_SAMPLER" "parentbased_traceidratio" "OTEL_TRACES_SAMPLER_ARG" (toJson $values.jaeger.sampleRatio) }}
{{- $_ := set $given $variable (dict "name" $variable "value" $value) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $values.pods.env }}{{ $_ := set $given .name . }}{{ end }}
{{- /* A variable sees those before it as $(NAME): each keeps its place, and new ones come first, as given. */}}
{{- $named := dict }}
{{- range .env }}{{ $_ := set $named .name true }}{{ end }}
{{- $variables := list }}
{{- range $values.pods.env }}
{{- if not (hasKey $named .name) }}{{ $variables = append $variables . }}{{ $_ := set $named .name true }}{{ end }}
{{- end }}
{{- range .env }}{{ $variables = append $variables (get $given .name | default .) }}{{ end }}
{{- range $name, $variable := $given }}
{{- if not (hasKey $named $name) }}{{ $variables = append $variables $variable }}{{ end }}
{{- end }}
{{- $_ := set . "env" $variables }}
{{- end }}
{{- end }}
{{- end }}

{{- define "cloudhub.image" }}
{{- $image := .root.Values.image }}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}
{{- .own.image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- with .own.image.digest }}@{{ . }}{{ end }}
{{- end }}
