package telemetry

import (
	"cmp"
	"strconv"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
)

func (r *Recorder) httpLabels(k *key) report.Labels {
	l := r.labels(k)
	l.RequestProtocol = "http"
	if k.grpc {
		l.RequestProtocol = "grpc"
		if k.grpcStatus >= 0 {
			l.GRPCStatus = strconv.Itoa(k.grpcStatus)
		}
	}
	l.ResponseCode = strconv.Itoa(k.status)
	return l
}

func (r *Recorder) tcpLabels(k *key) report.Labels {
	l := r.labels(k)
	l.RequestProtocol = "tcp"
	return l
}

// labels are those that HTTP and TCP share. The proxy's own side is always known; values that are not stay empty
// and are written as "unknown".
func (r *Recorder) labels(k *key) report.Labels {
	l := report.Labels{ResponseFlags: cmp.Or(k.flags, "-")}
	self := r.self.Load()
	source, destination := k.source, k.destination
	if k.direction == exchange.Inbound {
		l.Reporter = report.ReporterDestination
		destination = cmp.Or(destination, self)
		l.SecurityPolicy = "none"
		if k.peer != "" {
			l.SecurityPolicy = "mutual_tls"
		}
	} else {
		l.Reporter = report.ReporterSource
		source = cmp.Or(source, self)
		l.SecurityPolicy = report.Unknown // the side that reports it is the destination's
	}
	l.Source, l.Destination = r.peer(source), r.peer(destination)
	// A principal is what was proven on this very connection.
	switch {
	case k.direction == exchange.Inbound && k.peer != "":
		l.Source.Principal, l.Destination.Principal = k.peer, destination.Identity
	case k.direction != exchange.Inbound && k.tls && destination != nil:
		l.Source.Principal, l.Destination.Principal = source.Identity, destination.Identity
	}
	switch {
	case k.service != nil:
		l.Service, l.ServiceName, l.ServiceNamespace = k.service.Host, k.service.Name, k.service.Namespace
	case k.direction == exchange.Inbound && destination.Service != "":
		l.Service = mesh.FQDN(destination.Service, destination.Namespace)
		l.ServiceName, l.ServiceNamespace = destination.Service, destination.Namespace
	default:
		// PassthroughCluster and the like. The name that the client used would make as many series as it likes.
		l.ServiceName = k.cluster
	}
	return l
}

func (r *Recorder) peer(w *snapshot.Workload) report.Peer {
	if w == nil || w.Name == "" {
		return report.Peer{}
	}
	return report.Peer{
		Workload: w.Name, Namespace: w.Namespace, Cluster: r.cfg.Cluster,
		App: w.Labels["app"], Version: w.Labels["version"],
		CanonicalService: w.Service,
		// "latest" is Istio's revision of a workload without a version.
		CanonicalRevision: cmp.Or(w.Labels["version"], "latest"),
	}
}
