#!/usr/bin/env bash
# The half of gpu_check.sh that runs beside a GPU, with programs of our own for what was packed, for the driver's tools and
# for Python.
set -uo pipefail
pack=$TEST_TMPDIR/pack
tools=$TEST_TMPDIR/tools
mkdir -p "$pack/bin" "$pack/lib" "$pack/data" "$tools"
cp tools/gpu_check.sh "$pack/"
echo 0123456789abcdef > "$pack/commit"
failures=0
fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}
# write FILE: a program, whose text is the standard input.
write() {
  cat > "$1"
  chmod +x "$1"
}
# A loader's call: --library-path PATH PROGRAM ARGUMENTS.
write "$pack/lib/ld-linux-x86-64.so.2" <<'FAKE'
#!/usr/bin/env bash
exec "${@:3}"
FAKE
write "$pack/bin/example_kernels_test_gpu" <<'FAKE'
#!/usr/bin/env bash
echo '[       OK ] A.B (3 ms)'
echo '[       OK ] A.C (3 ms)'
FAKE
write "$pack/bin/cuda_ops_test_gpu" <<'FAKE'
#!/usr/bin/env bash
echo '[       OK ] A.B (3 ms)'
echo '[  FAILED  ] A.C (3 ms)'
echo '[  FAILED  ] A.C'
exit 1
FAKE
write "$pack/bin/kvmix" <<'FAKE'
#!/usr/bin/env bash
echo "kvmix got: $*"
FAKE
write "$pack/bin/cuda_attention_benchmark" <<'FAKE'
#!/usr/bin/env bash
echo "out of memory" >&2
exit 1
FAKE
write "$tools/nvidia-smi" <<'FAKE'
#!/usr/bin/env bash
[[ $* == *driver_version* ]] && echo 600.1 || echo "NVIDIA H100 80GB HBM3"
FAKE
write "$tools/compute-sanitizer" <<'FAKE'
#!/usr/bin/env bash
echo "========= ERROR SUMMARY: 0 errors"
[[ $2 == racecheck && $* == *cuda_ops* ]] && exit 9
exit 0
FAKE
write "$tools/python3" <<'FAKE'
#!/usr/bin/env bash
exit 1
FAKE
bare=$PATH
export PATH=$tools:$PATH
page=$pack/gpu_nvidia_h100_80gb_hbm3.md
has() { grep -qF -e "$1" "$page" || fail "no \"$1\" in the page"; }

"$pack/gpu_check.sh" run nonsense > "$TEST_TMPDIR/log" 2>&1 && fail "an unknown section was taken"
grep -q "there are: tests sanitizer" "$TEST_TMPDIR/log" || fail "sections are not named"
"$pack/gpu_check.sh" run sanitizer > "$TEST_TMPDIR/log" 2>&1 && fail "a race was no failure"
grep -q "1 failures" "$TEST_TMPDIR/log" || fail "not one failure: $(tail -n 1 "$TEST_TMPDIR/log")"
has "| example_kernels_test_gpu | racecheck | clean | 0 errors |"
has "| cuda_ops_test_gpu | racecheck | exit 9 | 0 errors |"
has "| cuda_ops_test_gpu | initcheck | clean |"
grep -q "Tests on the device" "$page" && fail "a section that was not run is in the page"

"$pack/gpu_check.sh" run > "$TEST_TMPDIR/log" 2>&1 && fail "failures were none"
grep -q "3 failures" "$TEST_TMPDIR/log" || fail "not three failures: $(tail -n 1 "$TEST_TMPDIR/log")"
has "commit 0123456789ab, driver 600.1"
has "| example_kernels_test_gpu | 2 | 0 | 0 |"
has "| cuda_ops_test_gpu | 1 | 1 | 0 |"
has "out of memory"
has "kvmix got: run experiments/configs/quickstart.textproto --device=cuda"
has "--set model.check_against=CPU"
has "kvmix got: bench --device=cuda --shape=8b-layer:32 --compute=bfloat16 --prompt=688 --generate=1024"
has "Not run: no PyTorch"

rm "$pack/bin/cuda_ops_test_gpu" "$tools/compute-sanitizer"
write "$pack/bin/cuda_attention_benchmark" <<'FAKE'
#!/usr/bin/env bash
echo "Device copy"
FAKE
THROUGHPUT=--shape=135m "$pack/gpu_check.sh" run > /dev/null || fail "exit code $? without a failure"
has "Not run: compute-sanitizer"
has "kvmix got: bench --device=cuda --shape=135m --kv=fp16,kvmix"
grep -q "out of memory" "$page" && fail "a section kept what it said before"

# A device that the driver names and the run-time library does not find.
write "$pack/bin/example_kernels_test_gpu" <<'FAKE'
#!/usr/bin/env bash
echo "test.cc:1: Skipped"
echo "no CUDA device: driver too old"
echo '[  SKIPPED ] CudaDevice.IsPresent (0 ms)'
FAKE
"$pack/gpu_check.sh" run tests > /dev/null 2>&1 && fail "a skipped device was no failure"
has "| example_kernels_test_gpu | 0 | exit 1 | 1 |"

PATH=$bare
"$pack/gpu_check.sh" run > "$TEST_TMPDIR/log" 2>&1 && fail "no device was no failure"
command -v nvidia-smi > /dev/null || grep -q "no CUDA device: driver too old" "$TEST_TMPDIR/log" || fail "no reason without a device"

[[ $failures -eq 0 ]] && echo "all passed"
exit $((failures > 0))
