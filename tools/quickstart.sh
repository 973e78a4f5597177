#!/usr/bin/env bash
# From a fresh Debian 12 to the first table: installs what is missing, builds, and runs the main job on the embedded
# model. Results lie in out/quickstart/. Arguments go to the experiment, as --set seed=2.
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh
bazel build //experiments:quickstart
exec bazel run //experiments:quickstart -- "$@"
