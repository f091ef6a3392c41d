{{- /* What values.schema.json cannot say: values that do not go together. */}}
{{- define "cloudhub.check" }}
{{- range $name := list "connector" "dispatcher" }}
{{- $own := get $.Values $name }}
{{- if gt (int $own.minReplicas) (int $own.maxReplicas) }}
{{- fail (printf "%s.minReplicas is %d, but maxReplicas is %d: the first must not be the greater one." $name (int $own.minReplicas) (int $own.maxReplicas)) }}
{{- end }}
{{- end }}
{{- range $name := list "connector" "enrolment" }}
{{- $service := (get $.Values $name).service }}
{{- if and (ne $service.type "LoadBalancer") (or $service.loadBalancerClass $service.loadBalancerSourceRanges) }}
{{- fail (printf "%s.service.type is %s, but a loadBalancerClass or loadBalancerSourceRanges is given: take them away, or make the type LoadBalancer." $name $service.type) }}
{{- end }}
{{- end }}
{{- if and .Values.connector.quic.annotations (ne .Values.connector.quic.exposed "own-service") }}
{{- fail "connector.quic.annotations are those of a second Service, which there is with connector.quic.exposed: own-service only." }}
{{- end }}
{{- if and .Values.priorityClass.create (not .Values.priorityClass.name) }}
{{- fail "priorityClass.name is empty: give it a name, or say create: false for pods without a priority." }}
{{- end }}
{{- end }}
