package expression

import (
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Attributes is the vocabulary that proxies know: Mixer's of Istio 1.0
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/attribute-vocabulary/).
var Attributes = vocabulary(map[snapshot.ValueType]string{
	snapshot.String: `
		source.uid source.name source.namespace source.principal source.owner source.services source.service source.user
		source.workload.uid source.workload.name source.workload.namespace
		destination.uid destination.name destination.namespace destination.principal destination.owner destination.services
		destination.service destination.user destination.workload.uid destination.workload.name destination.workload.namespace
		destination.service.uid destination.service.host destination.service.name destination.service.namespace
		destination.container.name destination.container.image origin.uid origin.user
		request.id request.path request.url_path request.host request.method request.scheme request.referer request.useragent
		request.reason request.api_key request.auth.principal request.auth.audiences request.auth.presenter request.auth.raw_claims
		response.grpc_status response.grpc_message connection.id connection.event connection.requested_server_name
		context.protocol context.reporter.kind context.reporter.uid context.proxy_error_code
		api.service api.version api.operation api.protocol check.error_message`,
	snapshot.Int64: `
		destination.port request.size request.total_size response.size response.total_size response.code check.error_code
		connection.received.bytes connection.received.bytes_total connection.sent.bytes connection.sent.bytes_total`,
	snapshot.Bool:         `connection.mtls check.cache_hit quota.cache_hit`,
	snapshot.IPAddress:    `source.ip destination.ip origin.ip`,
	snapshot.Timestamp:    `request.time response.time context.time context.timestamp`,
	snapshot.DurationType: `response.duration connection.duration`,
	snapshot.StringMap: `
		source.labels destination.labels destination.metadata request.headers request.query_params request.auth.claims response.headers`,
})

func vocabulary(byType map[snapshot.ValueType]string) Vocabulary {
	v := Vocabulary{}
	for t, names := range byType {
		for _, n := range strings.Fields(names) {
			v[n] = t
		}
	}
	return v
}
