#!/usr/bin/env bash
# Makes the images that the tests' services run in: composure-test/debian:1. The base comes from a registry, or
# from debootstrap where none is reached (needs root and apt).
set -euo pipefail
cd "$(dirname "$0")"
image=composure-test/debian:1
if docker image inspect "$image" >/dev/null 2>&1; then
  exit 0
fi
base=debian:bookworm-slim
if ! docker image inspect "$base" >/dev/null 2>&1 && ! timeout 60 docker pull -q "$base" >/dev/null 2>&1; then
  echo "no registry: making $base with debootstrap"
  command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq debootstrap >/dev/null; }
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase bookworm "$root" >"$root.log" 2>&1 || { tail -n 20 "$root.log"; exit 1; }
  rm -f "$root.log"
  tar -C "$root" -c . | docker import - "$base" >/dev/null
fi
echo "building $image"
DOCKER_BUILDKIT=0 docker build -q -t "$image" . 2>/dev/null
