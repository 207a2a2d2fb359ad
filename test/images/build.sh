#!/usr/bin/env bash
# Makes the images that the tests' services run in: composure-test/debian:1, and composure-test/servers:1 on top of it.
# The base comes from a registry, or from debootstrap where none is reached (needs root and apt).
set -euo pipefail
cd "$(dirname "$0")"
has() { docker image inspect "$1" >/dev/null 2>&1; }
build() { # IMAGE DOCKERFILE
  has "$1" && return
  echo "building $1"
  DOCKER_BUILDKIT=0 docker build -q -t "$1" -f "$2" . 2>/dev/null
}
image=composure-test/debian:1
base=debian:bookworm-slim
if ! has "$image" && ! has "$base" && ! timeout 60 docker pull -q "$base" >/dev/null 2>&1; then
  echo "no registry: making $base with debootstrap"
  command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq debootstrap >/dev/null; }
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase bookworm "$root" >"$root.log" 2>&1 || { tail -n 20 "$root.log"; exit 1; }
  rm -f "$root.log"
  tar -C "$root" -c . | docker import - "$base" >/dev/null
fi
build "$image" Dockerfile
build composure-test/servers:1 servers.Dockerfile
