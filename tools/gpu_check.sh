#!/usr/bin/env bash
# Proves the CUDA code on a real device, and measures it.
#
#   tools/gpu_check.sh pack [FOLDER]   where Bazel and the CUDA toolkit are, GPU or not: builds every CUDA test and kvmix for
#                                      the device, and copies them, with all libraries they load, into FOLDER (default:
#                                      out/gpu_check)
#   FOLDER/gpu_check.sh run            where the GPU is; needs its driver, and cuBLAS for whole models (WITH_CUBLAS=1 packs it,
#                                      600 MB): runs the tests, again under compute-sanitizer if that is there, then the
#                                      benchmarks, and writes FOLDER/gpu_<device>.md, to be kept as docs/results/gpu_<device>.md
#   tools/gpu_check.sh                 both, on one machine, into docs/results
#
# Without a device `run` says so and fails. Tests never depend on speed.
set -euo pipefail

self=$(readlink -f "$0")
BENCHMARK_FILTER=${BENCHMARK_FILTER:-.}
read -ra bazel <<< "${BAZEL:-bazel}"        # with startup flags, if any
read -ra flags <<< "${BAZEL_FLAGS:-}"  # of build

# ---- pack ----

pack() {
  local folder=$1 label binary built
  cd "$(dirname "$self")/.."
  local tests
  tests=$("${bazel[@]}" query --noshow_progress 'attr(tags, "\bgpu\b", tests(//...))' 2>/dev/null | sort)
  [ -n "$tests" ] || { echo "gpu_check: no CUDA tests; is there a toolkit under \$CUDA_PATH or /usr/local/cuda?" >&2; exit 1; }
  local programs="//experiments:kvmix //attention:cuda_attention_benchmark"
  # shellcheck disable=SC2086
  "${bazel[@]}" build "${flags[@]}" --noshow_progress $tests $programs
  built=$("${bazel[@]}" info "${flags[@]}" bazel-bin 2>/dev/null)
  rm -rf "$folder"
  mkdir -p "$folder/bin" "$folder/lib" "$folder/data/models" "$folder/data/experiments"
  for label in $tests $programs; do
    binary=$built/$(sed 's,^//,,; s,:,/,' <<< "$label")
    strip -o "$folder/bin/$(basename "$binary")" "$binary"
  done
  # Every library but the driver's, and the loader: the other machine's C library may be older.
  for binary in "$folder"/bin/*; do ldd "$binary"; done | awk '$3 ~ /^\// { print $3 } $1 ~ /^\/.*ld-linux/ { print $1 }' |
    sort -u | xargs -I{} cp -L {} "$folder/lib/"
  if [ -n "${WITH_CUBLAS:-}" ]; then
    cp -L "${CUDA_PATH:-/usr/local/cuda}"/lib64/libcublas{,Lt}.so.1[0-9] "$folder/lib/"
  fi
  cp -rL models/embedded "$folder/data/models/"
  cp -rL experiments/configs "$folder/data/experiments/"
  cp "$self" "$folder/gpu_check.sh"
  git rev-parse HEAD > "$folder/commit"
  echo "packed $(find "$folder/bin" -type f | wc -l) programs, $(du -sh "$folder" | cut -f 1), into $folder"
}

# ---- run ----

# Folders that may hold cuBLAS: the pack, a toolkit, PyTorch's wheels.
library_path() {
  local path=$here/lib folder
  for folder in /usr/local/cuda/lib64 $(python3 -c '
import glob, site
for base in site.getsitepackages() + [site.getusersitepackages()]:
    print(*glob.glob(base + "/nvidia/cublas/lib") + glob.glob(base + "/nvidia/cu1*/lib"))' 2>/dev/null); do
    [ -d "$folder" ] && path+=:$folder
  done
  echo "$path"
}

# program NAME ARGUMENTS: with the libraries that were packed.
program() {
  "$here/lib/ld-linux-x86-64.so.2" --library-path "$libraries" "$here/bin/$1" "${@:2}"
}

# One row: the test, cases passed, failed and skipped, seconds.
run_test() {
  local name=$1 start=$SECONDS status=0
  program "$name" --gtest_repeat=1 > "$here/logs/$name.log" 2>&1 || status=$?
  local passed failed skipped
  passed=$(grep -c '^\[       OK \]' "$here/logs/$name.log" || true)
  failed=$(grep -c '^\[  FAILED  \].*ms)$' "$here/logs/$name.log" || true)
  skipped=$(grep -c '^\[  SKIPPED \].*ms)$' "$here/logs/$name.log" || true)
  # A device that the driver names and the run-time library cannot use.
  if grep -q '^no CUDA device' "$here/logs/$name.log"; then status=1; fi
  if [ "$status" -ne 0 ]; then bad=$((bad + 1)); [ "$failed" -gt 0 ] || failed="exit $status"; fi
  echo "| $name | $passed | $failed | $skipped | $((SECONDS - start)) |"
}

# compute-sanitizer over the small tests: the kernels' own.
run_sanitizer() {
  local name=$1 tool=$2 log=$here/logs/$1.$2.log result=clean
  timeout 600 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
    "$here/lib/ld-linux-x86-64.so.2" --library-path "$libraries" "$here/bin/$name" > "$log" 2>&1 || result="exit $?"
  [ "$result" = clean ] || bad=$((bad + 1))
  echo "| $name | $tool | $result | $(grep 'ERROR SUMMARY' "$log" | tail -n 1 | sed 's/.*SUMMARY: //') |"
}

tests_section() {
  echo "## Tests on the device"
  echo
  echo "| test | passed | failed | skipped | seconds |"
  echo "|---|---|---|---|---|"
  local binary
  for binary in "$here"/bin/*_test_gpu; do run_test "$(basename "$binary")"; done
  echo
}

sanitizer_section() {
  echo "## compute-sanitizer"
  echo
  if ! command -v compute-sanitizer > /dev/null; then
    echo "Not run: compute-sanitizer is not on this machine."
    echo
    return
  fi
  echo "| test | tool | result | summary |"
  echo "|---|---|---|---|"
  local name tool
  for name in example_kernels_test_gpu cuda_ops_test_gpu cuda_kv_cache_test_gpu; do
    [ -x "$here/bin/$name" ] || continue
    for tool in memcheck racecheck synccheck initcheck; do run_sanitizer "$name" "$tool"; done
  done
  echo
}

# Fenced output of a command, or the end of its log if it failed.
output_of() {
  local log=$here/logs/$1.log
  echo
  echo "    $2"
  echo
  echo '```'
  if (cd "$here/data" && eval "$3") > "$log" 2> "$log.err"; then cat "$log"; else bad=$((bad + 1)); tail -n 20 "$log" "$log.err"; fi
  echo '```'
  echo
}

benchmark_section() {
  echo "## Speed"
  local binary name
  for binary in "$here"/bin/*_benchmark_gpu; do
    [ -x "$binary" ] || continue
    name=$(basename "$binary")
    output_of "$name" "$name --benchmark_filter=$BENCHMARK_FILTER" "program $name --benchmark_filter='$BENCHMARK_FILTER'"
  done
  output_of attention cuda_attention_benchmark "program cuda_attention_benchmark"
  local run="kvmix run experiments/configs/quickstart.textproto --device=cuda"
  output_of quickstart "$run" "program $run --output=$here/out"
  echo "## Agreement with the CPU"
  run+=" --set model.check_against=CPU --set speed.skip=true"
  output_of check_against_cpu "$run" "program $run --output=$here/out"
}

# PyTorch's fused attention, as a peer, where PyTorch is: one token of 8 sequences, fp16, the 8B shape and one head a group.
pytorch_section() {
  python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || return 0
  echo "## PyTorch on this device"
  output_of pytorch "scaled_dot_product_attention in fp16, one query a sequence; and a copy on the device" "python3 - <<'PYTHON'
import torch, torch.nn.functional as F
def seconds(f, n=50):
    for _ in range(5): f()
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(5):
        a.record()
        for _ in range(n): f()
        b.record(); torch.cuda.synchronize(); times.append(a.elapsed_time(b) / n / 1e3)
    return sorted(times)[2]
x = torch.empty(1 << 29, dtype=torch.float16, device='cuda'); y = torch.empty_like(x)
print('device copy, read and written: %.0f GB/s' % (4 * x.numel() / seconds(lambda: y.copy_(x)) / 1e9))
for heads, kv_heads in ((32, 8), (32, 32), (64, 8)):
    for tokens in (4096, 32768):
        q = torch.randn(8, heads, 1, 128, dtype=torch.float16, device='cuda')
        k = torch.randn(8, kv_heads, tokens, 128, dtype=torch.float16, device='cuda'); v = torch.randn_like(k)
        t = seconds(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != kv_heads))
        print('H %d G %d D 128, 8 x %d tokens: %.1f us, %.0f GB/s of keys and values' % (heads, kv_heads, tokens, t * 1e6, 4 * k.numel() / t / 1e9))
PYTHON"
}

run() {
  here=$(dirname "$self")
  libraries=$(library_path)
  bad=0
  mkdir -p "$here/logs"
  local device
  device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
  if [ -z "$device" ]; then
    echo "gpu_check: no CUDA device: nvidia-smi names none. The first test says:" >&2
    (cd "$here/data" && program example_kernels_test_gpu) 2>&1 | grep -m 1 -i "no CUDA device" >&2 || true
    exit 1
  fi
  local page
  page=$here/gpu_$(tr -cs 'A-Za-z0-9\n' '_' <<< "${device,,}" | sed 's/_*$//').md
  cd "$here/data"
  {
    echo "# CUDA on $device"
    echo
    echo "Written by \`tools/gpu_check.sh\`, commit $(cut -c 1-12 "$here/commit"), driver" \
      "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1), $(date -u +%Y-%m-%d)."
    echo
    tests_section
    sanitizer_section
    benchmark_section
    pytorch_section
  } > "$page"
  cat "$page"
  [ "$bad" -eq 0 ] || { echo "gpu_check: $bad failures; logs are in $here/logs" >&2; exit 1; }
  echo "gpu_check: written to $page"
}

case ${1:-both} in
  pack) pack "$(readlink -m "${2:-$(dirname "$self")/../out/gpu_check}")" ;;
  run) run ;;
  both)
    folder=$(readlink -m "$(dirname "$self")/../out/gpu_check")
    pack "$folder"
    status=0
    "$folder/gpu_check.sh" run || status=$?
    cp "$folder"/gpu_*.md "$(dirname "$self")/../docs/results/" 2>/dev/null || true
    exit "$status"
    ;;
  *) sed -n '2,14s/^# \{0,1\}//p' "$self"; exit 2 ;;
esac
