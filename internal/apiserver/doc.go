// Package apiserver serves objects over HTTP by Kubernetes' resource conventions
// (https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md), so that
// kubectl, client-go and Istio's clients work against a plane as against a cluster's API server.
//
// A plane hands it the kinds of package api that it owns, a Store to keep them in, and read-only views of core v1
// that it derives from what it knows. What is the same at every plane is here; what a change means is the plane's,
// which watches the Store.
package apiserver
