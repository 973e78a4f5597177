#!/usr/bin/env bash
# Measures every figure of docs/results/cpu.md and writes it there, with its command, and the picture beside it.
#
# usage: tools/cpu_report.sh [--again] [SECTION...]      default: all sections; --list names them
#
# A section takes a minute or a few. What is measured is kept in out/cpu_report/ and not measured again (unless --again),
# and no section is started after MINUTES (default 5): run it until it says that nothing is left. The machine should do
# nothing else meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."

page=docs/results/cpu.md
picture=docs/results/cpu_decode.svg
kept=out/cpu_report
minutes=${MINUTES:-5}

BENCH="bazel run //experiments:kvmix -- bench"
ROUNDS="--benchmark_enable_random_interleaving=true --benchmark_repetitions=9 --benchmark_min_time=0.05"
KV="--kv=fp16,4bit_g32,3bit_g32,2bit_g32,kvmix"

# NAME|COMMAND; the command's output is the section, a table.
SECTIONS=(
  "decode_135m|$BENCH --shape=135m --compute=bfloat16 $KV --depth=0,8192,16384 --prompt=0 --generate=32 --figure=$picture"
  "decode_135m_int8|$BENCH --shape=135m --compute=bfloat16 --arithmetic=int8 $KV --depth=8192,16384 --prompt=0 --generate=32"
  "prefill_135m|$BENCH --shape=135m --compute=bfloat16 --kv=fp16,4bit_g32,2bit_g32 --depth=0,4096 --prompt=512 --generate=0"
  "batch_135m|$BENCH --shape=135m --compute=bfloat16 --kv=fp16,4bit_g32,2bit_g32 --depth=2048 --batch=1,8 --prompt=0 --generate=16"
  "threads_135m|$BENCH --shape=135m --compute=bfloat16 --kv=fp16,2bit_g32 --depth=0,8192 --threads=1,2 --prompt=256 --generate=16"
  "float32_135m|$BENCH --shape=135m --kv=fp16,2bit_g32 --depth=0,8192 --prompt=512 --generate=16"
  "batch_135m_int8|$BENCH --shape=135m --compute=bfloat16 --arithmetic=int8 --kv=fp16,2bit_g32 --depth=2048 --batch=1,8 --prompt=0 --generate=16"
  "growth_135m|$BENCH --shape=135m --weights=Q4_0 --compute=int8 --arithmetic=int8 --kv=fp16,2bit_g32 --depth=0,4096,8192,12288,16384 --prompt=0 --generate=32"
  "model_1b|$BENCH --shape=1b --compute=bfloat16 --kv=fp16,4bit_g32,2bit_g32 --depth=0,4096 --prompt=128 --generate=8"
  "layer_8b|$BENCH --shape=8b-layer --compute=bfloat16 --kv=fp16,4bit_g32,3bit_g32,2bit_g32 --depth=16384 --prompt=0 --generate=64"
  "profile_135m|$BENCH --shape=135m --profile=gradient_norm --profile-prompts=30 --profile-tokens=1024 --repeat=1"
  "profile_10_layers|$BENCH --shape=135m:10 --profile=gradient_norm --profile-prompts=4 --profile-tokens=1024"
  "profile_20_layers|$BENCH --shape=135m:20 --profile=gradient_norm --profile-prompts=4 --profile-tokens=1024"
  "profile_30_layers|$BENCH --shape=135m --profile=gradient_norm --profile-prompts=4 --profile-tokens=1024"
  "profile_512_tokens|$BENCH --shape=135m --profile=gradient_norm --profile-prompts=4 --profile-tokens=512"
  "attention_decode|bazel run //attention:attention_benchmark -- --benchmark_filter='Decode/.*/32768/2' $ROUNDS"
  "attention_threads|bazel run //attention:attention_benchmark -- --benchmark_filter='Decode/.*/(half|k4v4|k2v2)/32768/1' $ROUNDS"
  "attention_prefill|bazel run //attention:attention_benchmark -- --benchmark_filter='Prefill/.*/(half|k4v4|k2v2)/.*/2/' $ROUNDS"
  "append|bazel run //attention:attention_benchmark -- --benchmark_filter='Append/.*/(k4v4|k2v2)/' --benchmark_enable_random_interleaving=true --benchmark_repetitions=3"
  "gates|bazel run //attention:attention_benchmark -- --benchmark_filter='Read/|Decode/.*/(half|k4v4int8|k2v2int8)/32768/|Prefill/.*/(half|k4v4|k2v2)/8192/2/' $ROUNDS --benchmark_format=json | awk -f tools/cpu_gates.awk"
  "linear|bazel run //models:linear_benchmark -- --benchmark_filter='Linear/.*/gate_up/.*/2/' $ROUNDS"
)

again=0
wanted=()
for argument in "$@"; do
  case $argument in
    --again) again=1 ;;
    --list) printf '%s\n' "${SECTIONS[@]%%|*}"; exit 0 ;;
    -*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) wanted+=("$argument") ;;
  esac
done

is_wanted() {
  [ ${#wanted[@]} -eq 0 ] && return 0
  local name
  for name in "${wanted[@]}"; do [ "$name" = "$1" ] && return 0; done
  return 1
}
for name in "${wanted[@]}"; do
  printf '%s\n' "${SECTIONS[@]%%|*}" | grep -qx -e "$name" || { echo "cpu_report: no section \"$name\"; --list names them" >&2; exit 2; }
done

# Medians of Google Benchmark's CSV as a Markdown table: time in microseconds, then all counters.
benchmark_table() {
  awk -F, '
    { gsub(/"/, "") }
    /^name,/ { for (i = 1; i <= NF; ++i) head[i] = $i
               columns = NF; next }
    $1 ~ /_median$/ { ++rows; name[rows] = $1; sub(/_median$/, "", name[rows]); sub(/(\/iterations:[0-9]+)?\/real_time$/, "", name[rows])
                      for (i = 2; i <= NF; ++i) { cell[rows, i] = $i; if ((i == 6 || i > 10) && $i != "") used[i] = 1 } }
    END {
      if (rows == 0) { print "cpu_report: no benchmark ran" > "/dev/stderr"; exit 1 }
      us["ns"] = 1e-3; us["us"] = 1; us["ms"] = 1e3; us["s"] = 1e6
      printf "| benchmark | us"; for (i = 6; i <= columns; ++i) if (used[i]) printf " | %s", head[i]; print " |"
      printf "|---|---:"; for (i = 6; i <= columns; ++i) if (used[i]) printf "|---:"; print "|"
      fflush()
      for (r = 1; r <= rows; ++r) {  # they ran in a random order
        line = sprintf("| %s | %.4g", name[r], cell[r, 3] * us[cell[r, 5]])
        for (i = 6; i <= columns; ++i) if (used[i]) line = line (cell[r, i] == "" ? " | " : sprintf(" | %.4g", cell[r, i]))
        print line " |" | "sort -V"
      } }'
}

measure() {  # COMMAND
  case $1 in
    *cpu_gates.awk*) bash -c "$1" ;;
    *_benchmark*) bash -c "$1 --benchmark_format=csv" | benchmark_table ;;
    *) bash -c "$1" ;;
  esac
}

# Replaces what stands between <!-- NAME --> and <!-- /NAME -->.
splice() {  # NAME FILE
  grep -q "^<!-- $1 -->$" "$page" && grep -q "^<!-- /$1 -->$" "$page" || { echo "cpu_report: $page has no place for $1" >&2; exit 1; }
  awk -v name="$1" -v file="$2" '
    $0 == "<!-- /" name " -->" { inside = 0 }
    !inside { print }
    $0 == "<!-- " name " -->" { inside = 1; while ((getline line < file) > 0) print line }' "$page" > "$page.new"
  mv "$page.new" "$page"
}

mkdir -p "$kept"
bazel build //experiments:kvmix //attention:attention_benchmark //models:linear_benchmark
left=()
for section in "${SECTIONS[@]}"; do
  name=${section%%|*}
  command=${section#*|}
  is_wanted "$name" || continue
  result=$kept/$name.md
  if [ ! -s "$result" ] || [ $again -eq 1 ]; then
    if [ $SECONDS -ge $((60 * minutes)) ]; then left+=("$name"); continue; fi
    echo "cpu_report: $name" >&2
    { printf '    %s\n\n' "$command"; measure "$command"; } > "$result.new"
    mv "$result.new" "$result"
  fi
  splice "$name" "$result"
done
if [ ${#left[@]} -gt 0 ]; then
  echo "cpu_report: left for the next call: ${left[*]}"
else
  echo "cpu_report: nothing is left; $page is complete"
fi
