#!/usr/bin/env bash
# Before a commit is shared: formatting, layers, build and tests. Needs clang-format (Debian's clang-format package).
set -euo pipefail
cd "$(dirname "$0")/.."
git ls-files '*.h' '*.cc' '*.cu' | xargs clang-format --dry-run --Werror
tools/check_layers.sh
exec tools/test.sh
