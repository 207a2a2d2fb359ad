#!/usr/bin/env bash
# Runs every fuzz target of the module for the time given as $1.
set -euo pipefail
cd "$(dirname "$0")/.."
found=0
while IFS=: read -r file name; do
  found=$((found + 1))
  echo "fuzz $(dirname "$file") $name"
  go test "./$(dirname "$file")" -run '^$' -fuzz "^$name\$" -fuzztime "$1"
done < <(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed 's|^\./||; s|func ||')
[ "$found" -gt 0 ] || { echo "no fuzz target found" >&2; exit 1; }
echo "$found fuzz targets"
