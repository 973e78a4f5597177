#!/usr/bin/env bash
# Checks the direction of dependencies. Each level may include, and name in its BUILD files, only itself and what stands
# to its right:
#   experiments -> models -> attention -> kvmix (with importance, allocation, recency, eviction) -> quant -> kvmix/base
# usage: tools/check_layers.sh [WORKSPACE_FOLDER]     default: the one this script lies in
set -euo pipefail
root=${1:-$(cd "$(dirname "$0")/.." && pwd)}
cd "$root"

LEVELS=(kvmix/base quant kvmix attention models experiments)  # lowest first

{ find "${LEVELS[@]}" -type f \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.proto' -o -name BUILD \) 2>/dev/null || true; } |
  sort -u | awk -v levels="${LEVELS[*]}" '
    # Level of a path: that of its longest prefix among the levels; 0 if none.
    function level(path,   i, best, rank) {
      for (i = 1; i <= count; ++i)
        if (index(path "/", name[i] "/") == 1 && length(name[i]) > best) { best = length(name[i]); rank = i }
      return rank + 0
    }
    BEGIN { count = split(levels, name, " ") }
    {
      file = $0; mine = level(file); number = 0; ++files
      while ((getline line < file) > 0) {
        ++number
        if (file ~ /BUILD$/) { pattern = "\"//[^\":]+"; skip = 3 } else { pattern = "^(#include|import) *\"[^\"]+"; skip = 0 }
        while (match(line, pattern)) {
          target = substr(line, RSTART, RLENGTH)
          line = substr(line, RSTART + RLENGTH)
          if (skip) target = substr(target, skip + 1); else sub(/^[^"]*"/, "", target)
          if (file ~ /BUILD$/ && line ~ /:__(subpackages|pkg)__/ && line ~ /^(:__|\/)/) continue  # visibility, not a dependency
          if (level(target) > mine) { printf "%s:%d: %s may not depend on %s\n", file, number, name[mine], target; bad = 1 }
        }
      }
      close(file)
    }
    END {
      if (files == 0) { print "check_layers: no sources found"; bad = 1 }
      exit bad
    }'
echo "check_layers: the layers hold"
