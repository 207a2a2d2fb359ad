// Package api is the config model: the kinds that people write, one file a kind, with what each accepts and
// refuses. The same code runs in the planes and in meshctl, so an object that passes here is accepted there.
//
// Specs are the messages of istio.io/api. An object is decoded strictly: a field that is not known, has another
// type, or names something that this mesh does not do yet is a problem that carries the field's path. All the
// problems of an object are reported at once.
package api
