#!/bin/bash
# The attention kernels keep everything in registers: what the assembler's report ($1) says of every one of them.
set -eu
for arch in sm_80 sm_90a; do
  kernels=$(grep -c "Compiling entry function.*\(Decode\|Tiled\)Attention.*$arch" "$1" || true)
  # 2 widths of a head x (5 pairs of bits, half, any bits), and 3 widths x 2 numbers of rows.
  if [ "$kernels" -ne 20 ]; then
    echo "the report has $kernels attention kernels for $arch, not 20"
    exit 1
  fi
done
if ! awk '
  /Compiling entry function/ { kernel = $0 }
  /spill/ && kernel ~ /(Decode|Tiled)Attention/ && !/ 0 bytes spill stores, 0 bytes spill loads/ {
    print kernel; print; bad = 1
  }
  END { exit bad }' "$1"; then
  echo "registers were spilled"
  exit 1
fi
