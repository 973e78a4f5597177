#!/usr/bin/env bash
# The workspace keeps its layers, and the check finds an include, an import and a label that break them.
set -uo pipefail
root=$(dirname "$(readlink -f WORKSPACE)")
failures=0
expect() {  # expect pass|fail FOLDER WHAT
  local got=pass
  output=$(tools/check_layers.sh "$2" 2>&1) || got=fail
  if [ "$got" != "$1" ]; then
    echo "$3: expected $1, got $got: $output"
    failures=$((failures + 1))
  fi
}
expect pass "$root" "the workspace"

plant() {  # plant FILE LINE: a tree with one good file and FILE holding LINE
  rm -rf "$TEST_TMPDIR/tree"
  mkdir -p "$TEST_TMPDIR/tree/kvmix/base" "$TEST_TMPDIR/tree/$(dirname "$1")"
  echo '#include "kvmix/base/check.h"' >"$TEST_TMPDIR/tree/kvmix/base/file.h"
  echo "$2" >"$TEST_TMPDIR/tree/$1"
}
plant quant/a.h '#include "kvmix/base/check.h"'
expect pass "$TEST_TMPDIR/tree" "a downward include"
plant quant/a.h '#include "attention/kv_cache.h"'
expect fail "$TEST_TMPDIR/tree" "an upward include"
plant kvmix/base/a.h '#include "kvmix/layer_trace.h"'
expect fail "$TEST_TMPDIR/tree" "base on kvmix"
plant kvmix/a.proto 'import "models/model.proto";'
expect fail "$TEST_TMPDIR/tree" "an upward import"
plant models/BUILD '    deps = ["//experiments:stages"],'
expect fail "$TEST_TMPDIR/tree" "an upward label"
plant models/BUILD '    deps = ["//attention:kv_cache", "//experiments:stages"],'
expect fail "$TEST_TMPDIR/tree" "an upward label behind a good one"
plant models/BUILD '    visibility = ["//experiments:__subpackages__"],'
expect pass "$TEST_TMPDIR/tree" "visibility"
mkdir -p "$TEST_TMPDIR/empty"
expect fail "$TEST_TMPDIR/empty" "an empty tree"
exit $failures
