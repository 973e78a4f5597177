# What attention must reach on a CPU, from attention_benchmark's JSON of one run with repetitions: medians against gates.
# Two threads cannot be faster against one than reading at the bandwidth of two makes them: where that is less than the gate, it is said.
#   Read/<threads>, Decode/<shape>/{half,k4v4int8,k2v2int8}/32768/{1,2}, Prefill/<shape>/{half,k4v4,k2v2}/8192/2
BEGIN {
  shapes = split("G4x8_D64 G3x3_D64 G8x4_D128 G8x1_D128", shape, " ")
  split("45 70 45 70", share, " ")     # percent of the read bandwidth, by query heads a KV head: 45 from 4 on
  split("1.5 2.0 2.2 2.8", four, " ")  # 4 bits against fp16
  split("1.6 2.2 2.7 4.0", two, " ")   # 2 bits
}
{  # "key": value,
  gsub(/[ ",]/, "")
  colon = index($0, ":")
  key = substr($0, 1, colon - 1)
  value = substr($0, colon + 1)
}
key == "name" {
  is_median = sub(/(\/iterations:[0-9]+)?\/real_time_median$/, "", value)
  name = value
}
!is_median { next }
key == "real_time" { time[name] = value }
key == "time_unit" { time[name] *= value == "ns" ? 1e-9 : value == "us" ? 1e-6 : 1e-3 }
key == "bytes_per_token" { bytes[name] = value }
key == "read_bytes_per_second" { read[name] = value }
function of(name) {
  if (!(name in time)) { print "cpu_gates: no median of " name > "/dev/stderr"; failed = 1; exit 1 }
  return time[name]
}
function row(what, value, gate, format, limit) {  # limit: what the machine allows, where that is known
  printf "| %s | " format " | " format " | %s |\n", what, gate, value,
         (value >= gate ? "yes" : limit != "" && limit < gate ? sprintf("no: memory allows %.2f", limit) : "no")
}
# Bytes of a step's caches a second.
function speed(decode, part) { return bytes[decode] * 32768 * part[2] / of(decode) }
END {
  if (failed) exit 1
  of("Read/2")
  print "| what | gate | measured | met |"
  print "|---|---:|---:|---|"
  for (s = 1; s <= shapes; ++s) {
    split(shape[s], part, /[Gx_D]+/)  # "", KV heads, query heads each, head_dim
    decode = "Decode/" shape[s] "/"
    row(shape[s] ": fp16 decode, share of the read bandwidth",
        100 * speed(decode "half/32768/2", part) / read["Read/2"], share[s], "%.0f %%")
    row(shape[s] ": 4 bits against fp16, times faster", of(decode "half/32768/2") / of(decode "k4v4int8/32768/2"), four[s], "%.2f")
    row(shape[s] ": 2 bits against fp16, times faster", of(decode "half/32768/2") / of(decode "k2v2int8/32768/2"), two[s], "%.2f")
    n = split("half k4v4int8 k2v2int8", format, " ")
    for (f = 1; f <= n; ++f)
      row(shape[s] ": " format[f] ", two threads against one", of(decode format[f] "/32768/1") / of(decode format[f] "/32768/2"), 1.85,
          "%.2f", read["Read/2"] / speed(decode format[f] "/32768/1", part))
    row(shape[s] ": prefill, 4 bits against fp16", of("Prefill/" shape[s] "/half/8192/2") / of("Prefill/" shape[s] "/k4v4/8192/2"), 0.9, "%.2f")
    row(shape[s] ": prefill, 2 bits against fp16", of("Prefill/" shape[s] "/half/8192/2") / of("Prefill/" shape[s] "/k2v2/8192/2"), 0.9, "%.2f")
  }
  printf "\nMemory is read at %.1f GB/s by 1 thread, %.1f GB/s by 2 threads (medians of the same run).\n", read["Read/1"] / 1e9, read["Read/2"] / 1e9
}
