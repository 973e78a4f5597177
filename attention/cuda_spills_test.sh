#!/bin/bash
# The kernels keep everything in registers: what the assembler's report ($1) says of every one of them, and of the functions
# that they call.
set -eu
for arch in sm_80 sm_90a; do
  kernels=$(grep -c "Compiling entry function.*$arch" "$1" || true)
  # Decode: 2 widths of a head x (5 pairs of bits, half, any bits). Tiled: 3 widths x 2 numbers of rows, and the combination
  # of parts. Store 3, compact 3, observe 4.
  if [ "$kernels" -ne 31 ]; then
    echo "the report has $kernels kernels for $arch, not 31"
    exit 1
  fi
done
if ! awk '
  /Compiling entry function/ { kernel = $0 }
  /spill/ && !/ 0 bytes spill stores, 0 bytes spill loads/ { print kernel; print; bad = 1 }
  END { exit bad }' "$1"; then
  echo "registers were spilled"
  exit 1
fi
