#!/usr/bin/env bash
# Compares the direct dependencies in Cargo.toml with the tables in docs/dependencies.md. Fails when a dependency has no
# row, or a row has no dependency.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# Keys of all dependency sections, those of [target.*] included, and names of sections such as [dependencies.NAME].
declared() {
  awk '
    /^\[/ {
      inside = $0 ~ /^\[(.*\.)?(dev-|build-)?dependencies\]/
      if (match($0, /dependencies\.[A-Za-z0-9_-]+\]/)) print substr($0, RSTART + 13, RLENGTH - 14)
    }
    inside && /^[A-Za-z0-9_-]+[ \t]*[.=]/ { sub(/[ \t.=].*/, ""); print }
  ' Cargo.toml | sort -u
}

# First cells of rows that hold one name in backticks.
documented() {
  awk -F '|' '$2 ~ /^ `[A-Za-z0-9_-]+` $/ { gsub(/[ `]/, "", $2); print $2 }' docs/dependencies.md | sort -u
}

mapfile -t undocumented < <(comm -23 <(declared) <(documented))
mapfile -t stale < <(comm -13 <(declared) <(documented))

if ((${#undocumented[@]})); then
  printf 'Cargo.toml: %s has no row in docs/dependencies.md\n' "${undocumented[@]}" >&2
fi
if ((${#stale[@]})); then
  printf 'docs/dependencies.md: %s is not in Cargo.toml\n' "${stale[@]}" >&2
fi
((${#undocumented[@]} + ${#stale[@]} == 0))
