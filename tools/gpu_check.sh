#!/usr/bin/env bash
# Proves the CUDA code on a real device, and measures it.
#
#   tools/gpu_check.sh pack [FOLDER]   where Bazel and the CUDA toolkit are, GPU or not: builds every CUDA test and kvmix for
#                                      the device, and copies them, with all libraries they load, into FOLDER (default:
#                                      out/gpu_check) and FOLDER.tar.gz, of at most 64 MiB, for tar -xzf on the other machine
#   FOLDER/gpu_check.sh run [SECTION]  where the GPU is; needs its driver, and cuBLAS for whole models (WITH_CUBLAS=1 packs it,
#                                      600 MB): writes FOLDER/gpu_<device>.md, to be kept as docs/results/gpu_<device>.md
#   tools/gpu_check.sh                 both, on one machine, into docs/results
#
# Sections, all in this order if none is named; the page has those that were run, then or earlier:
#   tests        every CUDA test
#   sanitizer    compute-sanitizer's four tools over the small tests, if it is there
#   attention    attention's speed beside a device copy's
#   model        the quickstart experiment, and the same checked against the CPU
#   throughput   batches of the 8B shape until memory is full, random weights, caches in half against packed ones
#   pytorch      scaled_dot_product_attention in half, and dequantizing before products, if PyTorch is there
#
# Without a device `run` says so and fails. Tests never depend on speed.
set -euo pipefail

self=$(readlink -f "$0")
# Seconds that compute-sanitizer may take for a test, and what the throughput section measures.
SANITIZER_SECONDS=${SANITIZER_SECONDS:-300}
THROUGHPUT=${THROUGHPUT:---shape=8b-layer:32 --compute=bfloat16 --prompt=688 --generate=1024 --batch=1,16,128,max --repeat=1}
THROUGHPUT_KV=${THROUGHPUT_KV:-fp16,kvmix,kvmix-2bit,4bit_g32}
sections="tests sanitizer attention model throughput pytorch"
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
  cp -rL experiments/configs experiments/presets "$folder/data/experiments/"
  cp "$self" "$folder/gpu_check.sh"
  git rev-parse HEAD > "$folder/commit"
  tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
  local packed
  packed=$(stat -c %s "$folder.tar.gz")
  echo "packed $(find "$folder/bin" -type f | wc -l) programs into $folder, $(du -sh "$folder" | cut -f 1), and $folder.tar.gz," \
    "$((packed >> 20)) MiB"
  [ -n "${WITH_CUBLAS:-}" ] || [ "$packed" -le $((64 << 20)) ] || { echo "gpu_check: that is more than 64 MiB" >&2; exit 1; }
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
  timeout "$SANITIZER_SECONDS" compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
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
  for name in example_kernels_test_gpu cuda_ops_test_gpu cuda_kv_cache_test_gpu cuda_eviction_test_gpu; do
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

attention_section() {
  echo "## Speed of attention"
  output_of attention cuda_attention_benchmark "program cuda_attention_benchmark"
}

model_section() {
  local run="kvmix run experiments/configs/quickstart.textproto --device=cuda"
  echo "## The quickstart experiment"
  output_of quickstart "$run" "program $run --output=$here/out"
  echo "## Agreement with the CPU"
  run+=" --set model.check_against=CPU --set speed.skip=true"
  output_of check_against_cpu "$run" "program $run --output=$here/out"
}

throughput_section() {
  echo "## Throughput"
  local bench="kvmix bench --device=cuda $THROUGHPUT --kv=$THROUGHPUT_KV"
  output_of throughput "$bench" "program $bench"
}

# PyTorch's fused attention, as a peer, and what is done without a kernel of one's own: 4-bit codes become a tensor of halves,
# and cuBLAS multiplies. One token of 8 sequences, the 8B shape and others.
pytorch_section() {
  echo "## PyTorch on this device"
  echo
  if ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    echo "Not run: no PyTorch that sees the device."
    echo
    return
  fi
  output_of pytorch "scaled_dot_product_attention in fp16; 4-bit codes dequantized, then cuBLAS; a copy on the device" "python3 - <<'PYTHON'
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
        print('H %d G %d D 128, 8 x %d tokens: fp16 %.1f us, %.0f GB/s of keys and values' % (heads, kv_heads, tokens, t * 1e6, 4 * k.numel() / t / 1e9))
        def packed(axis):
            shape = [8, kv_heads, tokens, 128]
            groups = list(shape); groups[axis] //= 32
            codes = torch.randint(0, 256, shape[:3] + [64], dtype=torch.uint8, device='cuda')
            return codes, torch.rand(groups, dtype=torch.float16, device='cuda'), torch.rand(groups, dtype=torch.float16, device='cuda'), axis
        def dequantize(codes, scale, zero, axis):
            x = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2).half().unflatten(axis, (-1, 32))
            return (x * scale.unsqueeze(axis + 1) + zero.unsqueeze(axis + 1)).flatten(axis, axis + 1)
        pk, pv = packed(2), packed(3)
        rows = q.view(8, kv_heads, heads // kv_heads, 128)
        def plain():
            p = torch.softmax(rows @ dequantize(*pk).transpose(2, 3) / 128 ** .5, dim=-1)
            return p @ dequantize(*pv)
        t = seconds(plain, 5)
        print('  4-bit, dequantized, then cuBLAS: %.1f us, %.0f GB/s of packed keys and values' % (t * 1e6, 2 * k.numel() * 5 / 8 / t / 1e9))
PYTHON"
}

# The sections that were run, this time or earlier.
write_page() {
  local device=$1 section
  echo "# CUDA on $device"
  echo
  echo "Written by \`tools/gpu_check.sh\`, commit $(cut -c 1-12 "$here/commit"), driver" \
    "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1), $(date -u +%Y-%m-%d)."
  echo
  for section in $sections; do
    if [ -e "$here/sections/$section.md" ]; then cat "$here/sections/$section.md"; fi
  done
}

run() {
  here=$(dirname "$self")
  libraries=$(library_path)
  bad=0
  local device section page
  for section in "$@"; do
    [[ " $sections " == *" $section "* ]] || { echo "gpu_check: no section $section; there are: $sections" >&2; exit 2; }
  done
  mkdir -p "$here/logs" "$here/sections"
  device=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || true
  if [ -z "$device" ]; then
    echo "gpu_check: no CUDA device: nvidia-smi names none. The first test says:" >&2
    (cd "$here/data" && program example_kernels_test_gpu) 2>&1 | grep -m 1 -i "no CUDA device" >&2 || true
    exit 1
  fi
  page=$here/gpu_$(tr -cs 'A-Za-z0-9\n' '_' <<< "${device,,}" | sed 's/_*$//').md
  cd "$here/data"
  # shellcheck disable=SC2086
  [ $# -gt 0 ] || set -- $sections
  for section in "$@"; do
    "${section}_section" > "$here/sections/$section.md"
    write_page "$device" > "$page"
  done
  cat "$page"
  [ "$bad" -eq 0 ] || { echo "gpu_check: $bad failures; logs are in $here/logs" >&2; exit 1; }
  echo "gpu_check: written to $page"
}

case ${1:-both} in
  pack) pack "$(readlink -m "${2:-$(dirname "$self")/../out/gpu_check}")" ;;
  run) run "${@:2}" ;;
  both)
    folder=$(readlink -m "$(dirname "$self")/../out/gpu_check")
    pack "$folder"
    status=0
    "$folder/gpu_check.sh" run || status=$?
    cp "$folder"/gpu_*.md "$(dirname "$self")/../docs/results/" 2>/dev/null || true
    exit "$status"
    ;;
  *) sed -n '2,22s/^# \{0,1\}//p' "$self"; exit 2 ;;
esac
