#!/usr/bin/env bash
# Runs TestUpgrade from the build of another commit to this one. Its tree is beside ours only while it is built.
#   build/upgrade.sh COMMIT
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'git worktree remove --force "$dir/before" 2>/dev/null || true; rm -rf "$dir"' EXIT
git worktree add --quiet --detach "$dir/before" "$1"
git log -1 --format='upgrade from %h %s' "$1"
env -u MAKEFLAGS make --no-print-directory -C "$dir/before" build VERSION=previous
COMPOSURE_PREVIOUS=$dir/before/bin/meshctl .cache/tools/gotestsum --format testname -- \
  -tags suites -count=1 -timeout 30m -run '^TestUpgrade$' ./test
