#!/usr/bin/env bash
# Installs what the build and the tests need, from Debian 12's own packages. Run it as often as you like: with nothing
# missing it does nothing. Needs root, or sudo.
#
# CUDA is not installed here. With a toolkit under $CUDA_PATH or /usr/local/cuda the CUDA targets are built as well.
set -euo pipefail

PACKAGES=(
  # build
  bazel-bootstrap bazel-platforms bazel-rules-java bazel-rules-proto bazel-skylib
  g++ protobuf-compiler ca-certificates git procps
  # libraries
  libabsl-dev libbenchmark-dev libboost-context-dev libeigen3-dev libglpk-dev libgmock-dev libgtest-dev libhwy-dev libpagmo-dev
  libpcre2-dev libprotobuf-dev librandom123-dev libutf8proc-dev libxxhash-dev nlohmann-json3-dev
)

# Single tests need these; without them they are skipped, and say so.
TEST_PACKAGES=(munge slurm-wlm)

# Those of its arguments that are not installed.
missing_of() {
  local package
  for package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}
readarray -t missing < <(missing_of "${PACKAGES[@]}")
readarray -t missing_for_tests < <(missing_of "${TEST_PACKAGES[@]}")
if [ $((${#missing[@]} + ${#missing_for_tests[@]})) -eq 0 ]; then
  echo "setup: every package is installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "setup: these packages are missing, and installing them needs root or sudo: ${missing[*]} ${missing_for_tests[*]}" >&2
    [ ${#missing[@]} -eq 0 ] && exit 0
    exit 1
  }
  as_root=(sudo)
fi
# Through env, since sudo drops the environment.
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
install() {
  echo "setup: installing $*"
  apt update && apt install -y --no-install-recommends "$@"
}
if [ ${#missing[@]} -gt 0 ]; then install "${missing[@]}"; fi
if [ ${#missing_for_tests[@]} -gt 0 ]; then
  install "${missing_for_tests[@]}" ||
    echo "setup: WARNING: could not install ${missing_for_tests[*]}; tests that need them are skipped" >&2
fi
echo "setup: done"
