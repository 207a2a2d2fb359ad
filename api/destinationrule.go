package api

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
)

// DestinationRule is the kind that names subsets of a service and says how to send to them
// (https://istio.io/latest/docs/reference/config/networking/destination-rule/).
func DestinationRule() *Kind {
	return networkingKind(Kind{
		Kind: "DestinationRule", Plural: "destinationrules", Singular: "destinationrule", ShortNames: []string{"dr"},
		Columns: []Column{{Name: "Host", Description: "The host that the rule is for", Cell: func(o *Object) any {
			return o.Spec.(*networking.DestinationRule).Host
		}}},
		validate: validateDestinationRule,
	}, func() proto.Message { return &networking.DestinationRule{} }, destinationRuleFields())
}

func destinationRuleFields() fieldSet {
	set := networkingFields(
		"DestinationRule.host", "DestinationRule.subsets", "DestinationRule.traffic_policy", "DestinationRule.export_to",
		"DestinationRule.workload_selector",
		"Subset.name", "Subset.labels", "Subset.traffic_policy",
		"TrafficPolicy.load_balancer", "TrafficPolicy.connection_pool", "TrafficPolicy.outlier_detection", "TrafficPolicy.tls",
		"TrafficPolicy.port_level_settings", "TrafficPolicy.retry_budget", "TrafficPolicy.proxy_protocol", "TrafficPolicy.ProxyProtocol.version",
		"TrafficPolicy.PortTrafficPolicy.port", "TrafficPolicy.PortTrafficPolicy.load_balancer",
		"TrafficPolicy.PortTrafficPolicy.connection_pool", "TrafficPolicy.PortTrafficPolicy.outlier_detection",
		"TrafficPolicy.PortTrafficPolicy.tls", "PortSelector.number",
		"TrafficPolicy.RetryBudget.percent", "TrafficPolicy.RetryBudget.min_retry_concurrency",
		"LoadBalancerSettings.simple", "LoadBalancerSettings.consistent_hash", "LoadBalancerSettings.warmup",
		"LoadBalancerSettings.locality_lb_setting", "LocalityLoadBalancerSetting.enabled", "LocalityLoadBalancerSetting.distribute",
		"LocalityLoadBalancerSetting.failover", "LocalityLoadBalancerSetting.failover_priority",
		"LocalityLoadBalancerSetting.Distribute.from", "LocalityLoadBalancerSetting.Distribute.to",
		"LocalityLoadBalancerSetting.Failover.from", "LocalityLoadBalancerSetting.Failover.to",
		"LoadBalancerSettings.ConsistentHashLB.http_header_name", "LoadBalancerSettings.ConsistentHashLB.http_cookie",
		"LoadBalancerSettings.ConsistentHashLB.use_source_ip", "LoadBalancerSettings.ConsistentHashLB.http_query_parameter_name",
		"LoadBalancerSettings.ConsistentHashLB.ring_hash", "LoadBalancerSettings.ConsistentHashLB.maglev",
		"LoadBalancerSettings.ConsistentHashLB.RingHash.minimum_ring_size", "LoadBalancerSettings.ConsistentHashLB.MagLev.table_size",
		"LoadBalancerSettings.ConsistentHashLB.HTTPCookie.name", "LoadBalancerSettings.ConsistentHashLB.HTTPCookie.path",
		"LoadBalancerSettings.ConsistentHashLB.HTTPCookie.ttl", "LoadBalancerSettings.ConsistentHashLB.HTTPCookie.attributes",
		"LoadBalancerSettings.ConsistentHashLB.HTTPCookie.Attribute.name", "LoadBalancerSettings.ConsistentHashLB.HTTPCookie.Attribute.value",
		"WarmupConfiguration.duration", "WarmupConfiguration.minimum_percent", "WarmupConfiguration.aggression",
		"ConnectionPoolSettings.tcp", "ConnectionPoolSettings.http",
		"ConnectionPoolSettings.TCPSettings.max_connections", "ConnectionPoolSettings.TCPSettings.connect_timeout",
		"ConnectionPoolSettings.TCPSettings.tcp_keepalive", "ConnectionPoolSettings.TCPSettings.max_connection_duration",
		"ConnectionPoolSettings.TCPSettings.idle_timeout",
		"ConnectionPoolSettings.TCPSettings.TcpKeepalive.probes", "ConnectionPoolSettings.TCPSettings.TcpKeepalive.time",
		"ConnectionPoolSettings.TCPSettings.TcpKeepalive.interval",
		"ConnectionPoolSettings.HTTPSettings.http1_max_pending_requests", "ConnectionPoolSettings.HTTPSettings.http2_max_requests",
		"ConnectionPoolSettings.HTTPSettings.max_requests_per_connection", "ConnectionPoolSettings.HTTPSettings.max_retries",
		"ConnectionPoolSettings.HTTPSettings.idle_timeout", "ConnectionPoolSettings.HTTPSettings.h2_upgrade_policy",
		"ConnectionPoolSettings.HTTPSettings.use_client_protocol", "ConnectionPoolSettings.HTTPSettings.max_concurrent_streams",
		"ConnectionPoolSettings.HTTPSettings.http2_keep_alive", "ConnectionPoolSettings.HTTPSettings.ConnectionKeepalive.interval",
		"ConnectionPoolSettings.HTTPSettings.ConnectionKeepalive.timeout",
		"OutlierDetection.split_external_local_origin_errors", "OutlierDetection.consecutive_local_origin_failures",
		"OutlierDetection.consecutive_gateway_errors", "OutlierDetection.consecutive_5xx_errors", "OutlierDetection.interval",
		"OutlierDetection.base_ejection_time", "OutlierDetection.max_ejection_percent", "OutlierDetection.min_health_percent",
		"ClientTLSSettings.mode", "ClientTLSSettings.client_certificate", "ClientTLSSettings.private_key", "ClientTLSSettings.ca_certificates",
		"ClientTLSSettings.credential_name", "ClientTLSSettings.subject_alt_names", "ClientTLSSettings.sni", "ClientTLSSettings.insecure_skip_verify",
	)
	set[selectorLabels] = true
	return set
}

func validateDestinationRule(o *Object) Problems {
	dr := o.Spec.(*networking.DestinationRule)
	var ps Problems
	if msg := checkHostOrWildcard(dr.Host); msg != "" {
		ps.invalid(Path{"spec", "host"}, msg)
	}
	validateExportTo(&ps, o, dr.ExportTo)
	validateClients(&ps, o, dr)
	validateTrafficPolicy(&ps, Path{"spec", "trafficPolicy"}, dr.TrafficPolicy)
	names := map[string]int{}
	for i, subset := range dr.Subsets {
		path := Path{"spec", "subsets", i}
		if msg := checkSubset(subset.GetName()); msg != "" {
			ps.invalid(path.At("name"), msg)
		}
		if first, taken := names[subset.GetName()]; taken {
			ps.invalid(path.At("name"), fmt.Sprintf("want a name of its own, %q is that of subsets[%d]", subset.GetName(), first))
		} else {
			names[subset.GetName()] = i
		}
		checkLabels(&ps, path.At("labels"), subset.GetLabels())
		validateTrafficPolicy(&ps, path.At("trafficPolicy"), subset.GetTrafficPolicy())
	}
	return ps
}

// validateClients checks which proxies a rule is for: those that a selector chooses are of its own namespace.
func validateClients(ps *Problems, o *Object, dr *networking.DestinationRule) {
	if dr.WorkloadSelector == nil {
		return
	}
	checkSelectorLabels(ps, Path{"spec", "workloadSelector", "matchLabels"}, dr.WorkloadSelector.MatchLabels)
	for i, ns := range dr.ExportTo {
		if ns != "." && ns != o.Meta.Namespace {
			ps.invalid(Path{"spec", "exportTo", i}, fmt.Sprintf(`want "." with a workloadSelector, which selects in the rule's own namespace, got %q`, ns))
		}
	}
}

func checkSubset(name string) string {
	if !dnsLabel.MatchString(name) {
		return fmt.Sprintf("want a name of letters, digits and -, got %q", name)
	}
	return ""
}
