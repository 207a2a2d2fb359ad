// Package test holds the suites that run on a real Docker engine with the real docker compose: `make suites`, or
// `make suites S=TestBookinfo` for one. They need bin/meshctl, the images of test/images and the tools of
// build/tools.sh, which make provides. Each suite has compose projects of its own name and removes them.
package test
