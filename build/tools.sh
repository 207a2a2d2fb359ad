#!/usr/bin/env bash
# Makes the programs that tests and lint need and that this machine may lack, into .cache/tools. Each is built
# from its Go module at the version that build/tools/<name>/go.mod pins, once.
#   build/tools.sh [compose] [compose-v5] [kubectl] [golangci-lint] [h2spec] [promtool]
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/.cache/tools
mkdir -p "$tools"
export GOTOOLCHAIN=auto GOFLAGS=-buildvcs=false CGO_ENABLED=0

build() { # build NAME PACKAGE LDFLAGS [MODULE]: up to date as long as its go.mod is; a MODULE is built as it pins its own needs
  local name=$1 dir=build/tools/$1 stamp
  stamp=$(sha256sum "$dir/go.mod" | cut -c1-16)
  [ "$(cat "$tools/$name.stamp" 2>/dev/null)" = "$stamp" ] && [ -x "$tools/$name" ] && return
  echo "building $name"
  [ -z "${4:-}" ] || dir=$(cd "$dir" && go mod download -json "$4" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  (cd "$dir" && go build -trimpath -ldflags "-s -w $3" -o "$tools/$name" "$2")
  echo "$stamp" >"$tools/$name.stamp"
}

for tool in "$@"; do
  case $tool in
  compose)
    version=$(sed -n 's|.*github.com/docker/compose/v2 \(v[0-9.]*\).*|\1|p' build/tools/compose-v2/go.mod)
    build compose-v2 github.com/docker/compose/v2/cmd "-X github.com/docker/compose/v2/internal.Version=$version" ;;
  compose-v5)
    version=$(sed -n 's|.*github.com/docker/compose/v5 \(v[0-9.]*\).*|\1|p' build/tools/compose-v5/go.mod)
    build compose-v5 ./cmd "-X github.com/docker/compose/v5/internal.Version=$version" github.com/docker/compose/v5 ;;
  kubectl) build kubectl . "" ;;
  gotestsum) build gotestsum gotest.tools/gotestsum "" ;;
  golangci-lint) build golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint "" ;;
  h2spec) build h2spec github.com/summerwind/h2spec/cmd/h2spec "" ;;
  promtool)
    [ -x "$tools/promtool" ] && continue
    echo "fetching promtool from Debian's prometheus"
    dir=$(mktemp -d)
    (cd "$dir" && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; } >/dev/null && dpkg-deb -x prometheus_*.deb .)
    install "$dir/usr/bin/promtool" "$tools/promtool"
    rm -rf "$dir" ;;
  *) echo "unknown tool $tool" >&2; exit 2 ;;
  esac
done
