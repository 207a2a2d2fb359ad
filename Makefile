# Composure. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export GOTOOLCHAIN := auto
export GOFLAGS := -buildvcs=false

ifndef VERSION
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
endif
# The sandbox's image is named by its content, and its binary must not change with each commit: raise this when
# its behaviour changes. A build id would be another with each change of a package of it, in whatever part.
SANDBOX_VERSION := 3
ARCH ?= $(shell go env GOARCH)
COMPONENTS := proxy keeper pilot citadel mixer
DIST := dist/$(ARCH)
PAYLOAD := internal/images/payload/$(ARCH)
VERSION_FLAG := -X github.com/composure-mesh/composure/internal/component.Version
SOURCES := $(shell find api citadel cmd compose internal keeper mesh mixer pilot proxy sandbox build/pack -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum
BOOKINFO_SOURCES := $(shell find examples/bookinfo -name '*.go' -o -name '*.html' -o -name '*.css' -o -name Dockerfile 2>/dev/null)
# docker compose where it is installed, else one built from its module.
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo $(CURDIR)/.cache/tools/compose-v2)

TEST_TOOLS := compose kubectl promtool gotestsum h2spec
# The clients that tests drive are those of TEST_TOOLS, whatever the machine has.
unit race suites test-restarts test-upgrade: export PATH := $(CURDIR)/.cache/tools:$(PATH)
unit race suites test-restarts test-upgrade: export COMPOSURE_COMPOSE := $(CURDIR)/.cache/tools/compose-v2
unit race suites test-restarts test-upgrade: export TESTCONTAINERS_RYUK_DISABLED := true

# Says at the end which tests were skipped, and why.
GOTESTSUM := .cache/tools/gotestsum --format pkgname

.DEFAULT_GOAL := help
.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: bin/meshctl ## bin/meshctl, which carries the mesh's images

.PHONY: images
images: bin/meshctl ## load the mesh's images into the Docker engine
	bin/meshctl images load
	@bin/meshctl images list

$(DIST)/.built: $(SOURCES)
	@mkdir -p $(DIST)
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) go build -trimpath -ldflags "-s -w $(VERSION_FLAG)=$(VERSION)" -o $(DIST)/ $(COMPONENTS:%=./cmd/%)
	CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCH) go build -trimpath -ldflags "-s -w -buildid= $(VERSION_FLAG)=$(SANDBOX_VERSION)" -o $(DIST)/ ./cmd/sandbox
	@touch $@

$(DIST)/.iptables: build/iptables/fetch.sh
	build/iptables/fetch.sh $(ARCH) $(DIST)/iptables
	@touch $@

$(PAYLOAD)/index.json: $(DIST)/.built $(DIST)/.iptables
	go run ./build/pack -dist $(DIST) -iptables $(DIST)/iptables -out $(PAYLOAD) -version $(VERSION)

bin/meshctl: $(PAYLOAD)/index.json
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $(VERSION_FLAG)=$(VERSION)" -o $@ ./cmd/meshctl

.PHONY: demo
demo: bin/meshctl bookinfo compose ## bookinfo in the mesh, behind the gateway on port 30080
	@COMPOSE="$(COMPOSE)" build/demo.sh up

.PHONY: demo-down
demo-down: ## remove every trace of the demo
	@COMPOSE="$(COMPOSE)" build/demo.sh down

.PHONY: compose
compose:
	@docker compose version >/dev/null 2>&1 || build/tools.sh compose

.PHONY: bookinfo
bookinfo: dist/bookinfo/.built ## the example application's image
dist/bookinfo/.built: $(BOOKINFO_SOURCES) go.mod
	@mkdir -p dist/bookinfo
	CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags "-s -w" -o dist/bookinfo/bookinfo ./examples/bookinfo
	cp examples/bookinfo/Dockerfile dist/bookinfo/
	DOCKER_BUILDKIT=0 docker build -q -t composure-example/bookinfo:latest dist/bookinfo 2>/dev/null
	@touch $@

.PHONY: test
test: unit suites ## every test, those on real Docker included

.PHONY: unit
unit: ## fast tests only
	@build/tools.sh $(TEST_TOOLS)
	$(GOTESTSUM) -- ./...

.PHONY: suites
suites: bin/meshctl bookinfo test-tools ## tests on real Docker; S=Name runs one
	$(GOTESTSUM) --format testname -- -tags suites -count=1 -timeout 60m $(if $(S),-run '$(S)') ./test/...

# Each run of the results replaces the last one's; the engine is restarted and killed five times each.
.PHONY: test-restarts
test-restarts: bin/meshctl test-tools ## every cell of the matrix of restarts, ten restarts of an engine; writes docs/restarts-results.md
	@build/restarts.sh docs/restarts-results.md

.PHONY: test-upgrade
test-upgrade: bin/meshctl test-tools ## upgrade from the build of another commit, FROM=v1.2.0; default the one before
	@build/upgrade.sh $(or $(FROM),HEAD^)

.PHONY: test-tools
test-tools:
	@build/tools.sh $(TEST_TOOLS) compose-v5
	@test/images/build.sh

.PHONY: race
race: ## fast tests with the race detector
	@build/tools.sh $(TEST_TOOLS)
	$(GOTESTSUM) -- -race ./...

# Each run writes test/bench/results.json; one of all cases the table of docs/perf.md, too.
.PHONY: bench
bench: ## the proxy beside nginx and haproxy, and pilot in big meshes; CASES=a,b runs a few, QUICK=1 shorter ones
	@which nginx haproxy wrk h2load >/dev/null && test -e /usr/lib/nginx/modules/ngx_stream_module.so || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light libnginx-mod-stream haproxy wrk nghttp2-client; } >/dev/null
	go run ./test/bench $(if $(QUICK),-quick) $(if $(CASES),-cases $(CASES)) \
		-results test/bench/results.json $(if $(CASES)$(QUICK),,-doc docs/perf.md)

.PHONY: lint
lint: ## golangci-lint
	@build/tools.sh golangci-lint
	.cache/tools/golangci-lint run ./...

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (5s)
	build/fuzz.sh $${FUZZTIME:-5s}

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist .cache $(PAYLOAD)
