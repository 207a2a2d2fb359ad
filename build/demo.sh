#!/usr/bin/env bash
# The demo: bookinfo in the mesh, behind the gateway. `demo.sh up` starts it and waits until it serves;
# `demo.sh down` removes every trace. COMPOSE is the compose command.
set -euo pipefail
cd "$(dirname "$0")/../examples/bookinfo"
meshctl=../../bin/meshctl
read -ra compose <<<"${COMPOSE:-docker compose}"
url=http://localhost:30080/productpage

# Readers come through the gateway; productpage's own port is any free one, so that it is never in the way.
export BOOKINFO_PORT=${BOOKINFO_PORT:-0}

up() {
  "$meshctl" compose inject --ingress 30080
  "${compose[@]}" --progress quiet up --detach --wait
  "$meshctl" apply -f mesh/bookinfo-gateway.yaml -f mesh/destination-rule-all.yaml
  echo -n "waiting for $url "
  for _ in $(seq 60); do
    if curl -fsS -o /dev/null "$url" 2>/dev/null; then
      break
    fi
    echo -n .
    sleep 0.5
  done
  echo
  curl -fsS -o /dev/null "$url"
  cat <<EOF

Bookinfo is in the mesh. Open $url and reload: the stars change, as three versions of reviews take turns.

Try next, in examples/bookinfo:
  ../../bin/meshctl apply -f mesh/virtual-service-all-v1.yaml           all to v1: no stars
  ../../bin/meshctl apply -f mesh/virtual-service-reviews-test-v2.yaml  sign in as jason: black stars, for him alone
  ../../bin/meshctl apply -f mesh/virtual-service-reviews-50-v3.yaml    half of the readers get red stars
  ../../bin/meshctl proxy-status                                        who has which configuration
  ../../bin/meshctl certs                                               who holds which certificate until when
  ../../bin/meshctl metrics                                             what Prometheus would scrape
  docker compose logs -f reviews-v2-mesh-proxy                          the access log of one sidecar
make demo-down removes it all.
EOF
}

down() {
  if [ -e compose.override.yaml ]; then
    "${compose[@]}" --progress quiet down --volumes --remove-orphans --timeout 5
  fi
  [ ! -x "$meshctl" ] || "$meshctl" compose uninject
  # Images that another mesh still uses stay.
  docker images --format '{{.Repository}}:{{.Tag}}' | { grep -E '^(composure|composure-example)/' || true; } |
    while read -r image; do docker rmi "$image" >/dev/null 2>&1 || true; done
  rm -rf ../../dist/bookinfo
}

case ${1:-} in
up) up ;;
down) down ;;
*) echo "usage: demo.sh up|down" >&2; exit 2 ;;
esac
