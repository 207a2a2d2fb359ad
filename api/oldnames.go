package api

import (
	"math"

	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1"
)

// oldName puts the value of a field that today's Istio no longer wants into today's fields of the same message.
type oldName func(w *strictWalk, path Path, today map[string]any, value any)

// oldNames are fields of Istio 1.0 that today's types lack or deprecate, by message: files that have them still apply
// (istio.io/api at 1.0.6, networking/v1alpha3).
var oldNames = map[protoreflect.FullName]map[string]oldName{ //nolint:gochecknoglobals // a constant
	networkingPackage + ".HTTPRoute": {
		"websocketUpgrade":      oldWebSocket,
		"mirrorPercent":         oldPercent("mirrorPercent", "mirrorPercentage"),
		"appendHeaders":         oldHeaders("appendHeaders", "request", "add"),
		"appendRequestHeaders":  oldHeaders("appendRequestHeaders", "request", "add"),
		"removeRequestHeaders":  oldHeaders("removeRequestHeaders", "request", "remove"),
		"appendResponseHeaders": oldHeaders("appendResponseHeaders", "response", "add"),
		"removeResponseHeaders": oldHeaders("removeResponseHeaders", "response", "remove"),
	},
	networkingPackage + ".HTTPRouteDestination": {
		"appendRequestHeaders":  oldHeaders("appendRequestHeaders", "request", "add"),
		"removeRequestHeaders":  oldHeaders("removeRequestHeaders", "request", "remove"),
		"appendResponseHeaders": oldHeaders("appendResponseHeaders", "response", "add"),
		"removeResponseHeaders": oldHeaders("removeResponseHeaders", "response", "remove"),
	},
	networkingPackage + ".HTTPFaultInjection.Abort":              {"percent": oldPercent("percent", "percentage")},
	networkingPackage + ".HTTPFaultInjection.Delay":              {"percent": oldPercent("percent", "percentage")},
	networkingPackage + ".OutlierDetection":                      {"consecutiveErrors": oldErrors},
	networkingPackage + ".LoadBalancerSettings":                  {"warmupDurationSecs": oldWarmup},
	networkingPackage + ".LoadBalancerSettings.ConsistentHashLB": {"minimumRingSize": oldRingSize},
	networkingPackage + ".CorsPolicy":                            {"allowOrigin": oldOrigins},
}

// oldWebSocket drops the field: every route takes upgrades to WebSocket.
func oldWebSocket(w *strictWalk, path Path, _ map[string]any, value any) {
	w.boolean(path.At("websocketUpgrade"), value)
}

// oldPercent is a whole number for a percentage.
func oldPercent(name, today string) oldName {
	return func(w *strictWalk, path Path, message map[string]any, value any) {
		n := w.integer(path.At(name), value, 0, 100)
		if message[today] != nil {
			w.problems.invalid(path.At(name), "want only one of "+name+" and "+today)
			return
		}
		message[today] = map[string]any{"value": n}
	}
}

// oldErrors counted 502, 503 and 504, and was all that counted.
func oldErrors(w *strictWalk, path Path, today map[string]any, value any) {
	path = path.At("consecutiveErrors")
	n := w.integer(path, value, 0, math.MaxUint32)
	if today["consecutiveGatewayErrors"] != nil {
		w.problems.invalid(path, "want only one of consecutiveErrors and consecutiveGatewayErrors")
		return
	}
	today["consecutiveGatewayErrors"] = n
	if today["consecutive5xxErrors"] == nil {
		today["consecutive5xxErrors"] = 0
	}
}

func oldWarmup(w *strictWalk, path Path, today map[string]any, value any) {
	path = path.At("warmupDurationSecs")
	d := w.duration(path, value)
	if today["warmup"] != nil {
		w.problems.invalid(path, "want only one of warmupDurationSecs and warmup")
		return
	}
	today["warmup"] = map[string]any{"duration": d}
}

func oldRingSize(w *strictWalk, path Path, today map[string]any, value any) {
	path = path.At("minimumRingSize")
	n := w.integer(path, value, 0, maxRingSize)
	if today["ringHash"] != nil || today["maglev"] != nil {
		w.problems.invalid(path, "want only one of minimumRingSize, ringHash and maglev")
		return
	}
	today["ringHash"] = map[string]any{"minimumRingSize": n}
}

// oldOrigins are texts for matches.
func oldOrigins(w *strictWalk, path Path, today map[string]any, value any) {
	path = path.At("allowOrigin")
	list, ok := value.([]any)
	if !ok {
		w.problems.invalid(path, "want a list, got "+describe(value))
	}
	if today["allowOrigins"] != nil {
		w.problems.invalid(path, "want only one of allowOrigin and allowOrigins")
		return
	}
	origins := make([]any, len(list))
	for i, origin := range list {
		if text, _ := origin.(string); text == "" {
			w.problems.invalid(path.At(i), "want an origin, such as https://example.com, or *, got "+describe(origin))
		}
		origins[i] = map[string]any{"exact": origin}
	}
	today["allowOrigins"] = origins
}

// oldHeaders puts what stands under name into headers.<message>.<operation>.
func oldHeaders(name, message, operation string) oldName {
	field := (&networking.Headers_HeaderOperations{}).ProtoReflect().Descriptor().Fields().ByJSONName(operation)
	return func(w *strictWalk, path Path, today map[string]any, value any) {
		operations := objectAt(objectAt(today, "headers"), message)
		if operations[operation] != nil {
			w.problems.invalid(path.At(name), "want only one of "+name+" and headers."+message+"."+operation)
			return
		}
		operations[operation] = w.field(path.At(name), field, value)
	}
}

// objectAt is the object under key, a new one if there is none.
func objectAt(of map[string]any, key string) map[string]any {
	c, _ := of[key].(map[string]any)
	if c == nil {
		c = map[string]any{}
		of[key] = c
	}
	return c
}
