// MemoryLedger: every byte of a KV cache, billed by cause, for keys and values
// apart.
#pragma once

#include <cstdint>

namespace kvmix {

struct LedgerSide {
  int64_t codes = 0;
  int64_t scales = 0;
  int64_t zeros = 0;
  int64_t side_data = 0;  // codebooks, outliers, factors, lists of channels
  int64_t sinks = 0;      // full-precision tokens at the start
  int64_t window = 0;     // full-precision tokens at the end
  int64_t slack =
      0;  // allocated and not used: room in the last block and in window pages
  int64_t packed_tokens = 0;  // summed over layers and KV heads; not bytes
  int64_t full_precision_tokens = 0;
  int64_t unquantized_tokens = 0;  // of these, in 16-bit formats: for good
  int64_t bytes() const {
    return codes + scales + zeros + side_data + sinks + window + slack;
  }
  LedgerSide& operator+=(const LedgerSide& other) {
    codes += other.codes;
    scales += other.scales;
    zeros += other.zeros;
    side_data += other.side_data;
    sinks += other.sinks;
    window += other.window;
    slack += other.slack;
    packed_tokens += other.packed_tokens;
    full_precision_tokens += other.full_precision_tokens;
    unquantized_tokens += other.unquantized_tokens;
    return *this;
  }
};

struct MemoryLedger {
  LedgerSide key;
  LedgerSide value;
  int64_t bookkeeping = 0;  // page tables and the cache object's own state
  int64_t total() const { return key.bytes() + value.bytes() + bookkeeping; }
  MemoryLedger& operator+=(const MemoryLedger& other) {
    key += other.key;
    value += other.value;
    bookkeeping += other.bookkeeping;
    return *this;
  }
};

}  // namespace kvmix
