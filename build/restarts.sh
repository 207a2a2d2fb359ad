#!/usr/bin/env bash
# Runs the whole matrix of restarts, and writes its results to a file if all of it passes.
set -euo pipefail
file=$1
results=$(mktemp)
trap 'rm -f "$results"' EXIT
cat > "$results" <<END
# What restarts cost

Written by \`make test-restarts\` on $(date -u +%F), $(nproc) cores, engine $(docker version -f '{{.Server.Version}}'). What happens in each case, and why, is in
[restarts.md](restarts.md). All the while the namespace of every application is looked into: none may run without capture rules, unless its
sandbox has cut it off.
END
COMPOSURE_RESTARTS=5 COMPOSURE_RESULTS=$results .cache/tools/gotestsum --format testname -- \
  -tags suites -count=1 -timeout 60m -run '^(TestRestarts|TestEngineRestart)$' ./test
mv "$results" "$file"
trap - EXIT
chmod 644 "$file"
