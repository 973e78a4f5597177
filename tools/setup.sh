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
  libabsl-dev libbenchmark-dev libboost-context-dev libeigen3-dev libglpk-dev libgmock-dev libgtest-dev libhwy-dev libpcre2-dev
  libprotobuf-dev librandom123-dev libutf8proc-dev libxxhash-dev nlohmann-json3-dev
)

missing=()
for package in "${PACKAGES[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: every package is installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "setup: these packages are missing, and installing them needs root or sudo: ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
# Through env, since sudo drops the environment.
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
apt update
apt install -y --no-install-recommends "${missing[@]}"
echo "setup: done"
