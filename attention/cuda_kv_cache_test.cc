// The device KV cache against the CPU's: what is stored, bit for bit, and
// attention over it against the reference, in all of the shared cases.
#include "attention/cuda_cache_testing.h"

namespace kvmix {
namespace {

using namespace testing;  // NOLINT

class CudaKvCacheTest : public ::testing::TestWithParam<Case> {};

TEST_P(CudaKvCacheTest, StoresAndAttendsAsTheCpu) {
  const Case& c = GetParam();
  const auto cpu = CpuCache(c);
  const auto cuda =
      CudaCache(c, 1, c.cached + c.chunk + 5, std::max(c.cached, c.chunk));
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  const auto append = [&](int64_t n, uint64_t stream) {
    const auto keys = Normals(n * row, stream);
    const auto values = Normals(n * row, stream + 1);
    ASSERT_OK(cpu->Append(0, n, keys.data(), values.data()));
    AppendCuda(*cuda, {{0, n}}, keys, values);
  };
  if (c.cached > 0) {
    append(c.cached, 10);
    ASSERT_OK(cpu->FinishChunk(0));
    ASSERT_OK(cuda->FinishChunk(0, nullptr));
    ExpectSameStored(c, *cpu, *cuda, 0);
  }
  append(c.chunk, 20);
  const auto queries = Normals(c.chunk * row * c.group, 99);
  ExpectNearReference(c, *cpu, queries, AttendCuda(*cuda, c, queries));
  ASSERT_OK(cpu->FinishChunk(0));
  ASSERT_OK(cuda->FinishChunk(0, nullptr));
  ExpectSameStored(c, *cpu, *cuda, 0);
  EXPECT_OK(cuda->CheckNumbers(nullptr));
}

INSTANTIATE_TEST_SUITE_P(AllCases, CudaKvCacheTest,
                         ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

// ---- Token by token ----

// Every combination of bits has its own way through the kernels: their planes
// on either side, and windows whose ends cut tiles of keys and values
// elsewhere.
struct BitsCase {
  int key_bits, value_bits, head_dim;
};

class CudaBitsTest : public ::testing::TestWithParam<BitsCase> {};

TEST_P(CudaBitsTest, DecodesTokenByTokenAsTheCpu) {
  const BitsCase bits = GetParam();
  Case c;
  c.kv_heads = 1;
  c.group = 3;
  c.head_dim = bits.head_dim;
  c.key = PerChannel(bits.key_bits, 32);
  c.value = PerToken(bits.value_bits, 32);
  c.recency = {.keep = 5,
               .sinks = 3,
               .order = bits.key_bits % 2 == 0 ? FlushOrder::kBeforeAttention
                                               : FlushOrder::kAfterAttention};
  const auto cpu = CpuCache(c);
  const auto cuda = CudaCache(c, 1, 100, 70);
  EXPECT_NE(cuda->DecodeKernelName(0), CudaKvCache::PrefillKernelName());
  const int64_t row = c.head_dim;
  const auto append = [&](int64_t n, uint64_t stream) {
    const auto keys = Normals(n * row, stream);
    const auto values = Normals(n * row, stream + 1);
    ASSERT_OK(cpu->Append(0, n, keys.data(), values.data()));
    AppendCuda(*cuda, {{0, n}}, keys, values);
  };
  const auto finish = [&] {
    ASSERT_OK(cpu->FinishChunk(0));
    ASSERT_OK(cuda->FinishChunk(0, nullptr));
  };
  append(61, 1);
  finish();
  for (int step = 0; step < 12; ++step) {  // keys leave once, values each time
    append(1, 10 + 2 * step);
    const auto queries = Normals(row * c.group, 100 + step);
    ExpectNearReference(c, *cpu, queries, AttendCuda(*cuda, c, queries));
    finish();
  }
  ExpectSameStored(c, *cpu, *cuda, 0);
  append(20, 50);  // a longer chunk after single tokens
  const auto queries = Normals(20 * row * c.group, 99);
  ExpectNearReference(c, *cpu, queries, AttendCuda(*cuda, c, queries));
  finish();
  ExpectSameStored(c, *cpu, *cuda, 0);
}

std::vector<BitsCase> AllBits() {
  std::vector<BitsCase> cases = {{2, 2, 128}, {2, 4, 128}, {3, 3, 128},
                                 {3, 4, 128}, {4, 4, 128}, {4, 8, 128}};
  for (int bits = 1; bits <= 8; ++bits) cases.push_back({bits, 9 - bits, 64});
  cases.push_back({2, 2, 64});
  cases.push_back({3, 3, 64});
  cases.push_back({4, 4, 64});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(AllBits, CudaBitsTest, ::testing::ValuesIn(AllBits()),
                         [](const auto& info) {
                           return "K" + std::to_string(info.param.key_bits) +
                                  "V" + std::to_string(info.param.value_bits) +
                                  "D" + std::to_string(info.param.head_dim);
                         });

// ---- Batches ----

Case BatchCase() {
  Case c;
  c.kv_heads = 2;
  c.group = 10;  // more query heads than an operand has columns
  c.key = PerChannel(3, 32);
  c.value = PerToken(4, 32);
  c.recency = {.keep = 7, .sinks = 2};
  return c;
}

std::vector<float> Joined(const std::vector<std::vector<float>>& parts) {
  std::vector<float> all;
  for (const auto& part : parts)
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

// Sequences of unequal lengths, in one chunk: each one's results are what it
// has alone on the CPU.
TEST(CudaBatchTest, SequencesOfUnequalLengthsInOneChunk) {
  const Case c = BatchCase();
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  const std::vector<std::vector<int64_t>> chunks = {
      {40, 1, 97}, {1, 1, 1}, {1, 30, 2}, {1, 1, 1}};
  const auto cuda = CudaCache(c, 3, 120, 150);
  std::vector<std::unique_ptr<KvCache>> cpu;
  for (int i = 0; i < 3; ++i) cpu.push_back(CpuCache(c));
  uint64_t stream = 1;
  for (const std::vector<int64_t>& lengths : chunks) {
    std::vector<SequenceChunk> chunk;
    std::vector<std::vector<float>> keys, values, queries;
    for (const int i : {2, 0, 1}) {  // not in the order of their memory
      const int64_t n = lengths[i];
      chunk.push_back({i, n});
      keys.push_back(Normals(n * row, stream++));
      values.push_back(Normals(n * row, stream++));
      queries.push_back(Normals(n * row * c.group, stream++));
      ASSERT_OK(cpu[i]->Append(0, n, keys.back().data(), values.back().data()));
    }
    AppendCuda(*cuda, chunk, Joined(keys), Joined(values));
    const auto out = AttendCuda(*cuda, c, Joined(queries));
    auto at = out.begin();
    for (size_t i = 0; i < chunk.size(); ++i) {
      SCOPED_TRACE(chunk[i].sequence);
      const auto end = at + static_cast<int64_t>(queries[i].size());
      ExpectNearReference(c, *cpu[chunk[i].sequence], queries[i], {at, end});
      at = end;
      ASSERT_OK(cpu[chunk[i].sequence]->FinishChunk(0));
    }
    ASSERT_OK(cuda->FinishChunk(0, nullptr));
    for (int i = 0; i < 3; ++i) ExpectSameStored(c, *cpu[i], *cuda, i);
  }
  EXPECT_EQ(cuda->num_tokens(2), 101);
  cuda->Reset(2);
  EXPECT_EQ(cuda->num_tokens(2), 0);
}

// A step captured once and replayed says the same as its launches do.
TEST(CudaGraphTest, ReplaysADecodeStep) {
  Case c = BatchCase();
  c.group = 2;
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  const auto launched = CudaCache(c, 1, 200, 100);
  const auto replayed = CudaCache(c, 1, 200, 100);
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  DeviceVector<float> keys(row), values(row), queries(row * c.group),
      out(row * c.group);
  const auto step = [&](CudaKvCache& cache) {
    ASSERT_OK(cache.Append(0, {keys.data(), CudaNumber::kFloat, row},
                           {values.data(), CudaNumber::kFloat, row}, stream));
    ASSERT_OK(
        cache.Attention(0, {queries.data(), CudaNumber::kFloat, row * c.group},
                        {out.data(), CudaNumber::kFloat, row * c.group},
                        {.scale = 0.125f}, stream));
    ASSERT_OK(cache.FinishChunk(0, stream));
  };
  for (CudaKvCache* cache : {launched.get(), replayed.get()}) {
    AppendCuda(*cache, {{0, 70}}, Normals(70 * row, 1), Normals(70 * row, 2));
    ASSERT_OK(cache->FinishChunk(0, nullptr));
  }
  CudaGraph graph;
  for (int i = 0; i < 40; ++i) {
    const auto upload = [&](DeviceVector<float>& to, uint64_t seed) {
      const auto x = Normals(static_cast<int64_t>(to.size()), seed);
      ASSERT_EQ(
          cudaMemcpy(to.data(), x.data(), 4 * x.size(), cudaMemcpyHostToDevice),
          cudaSuccess);
    };
    upload(keys, 10 + i);
    upload(values, 100 + i);
    upload(queries, 200 + i);
    ASSERT_OK(launched->BeginChunk({{0, 1}}, stream));
    step(*launched);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    const std::vector<float> want = out.ToHost();
    ASSERT_OK(replayed->BeginChunk({{0, 1}}, stream));
    CaptureOrReplay(graph, *replayed, stream, step);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    ASSERT_EQ(out.ToHost(), want) << "step " << i;
  }
  cudaStreamDestroy(stream);
}

// ---- Windows ----

// A window that is a share of the context grows with it.
class KeepShare final : public RecencyPolicy {
 public:
  FlushOrder flush_order() const override {
    return FlushOrder::kBeforeAttention;
  }
  absl::Status Validate(const WindowState&) const override {
    return absl::OkStatus();
  }
  int64_t TokensToQuantize(const WindowState& s) const override {
    const int64_t kept = (s.window_tokens + s.packed_tokens) / 3;
    return std::max<int64_t>(s.window_tokens - kept, 0) / s.granularity *
           s.granularity;
  }
};

TEST(CudaWindowTest, GrowsWithTheContext) {
  Case c = BatchCase();
  c.kv_heads = 1;
  const CacheShape shape = ShapeOf(c);
  const CachePlan plan = PlanOf(c.key, c.value);
  auto cpu = KvCache::Create(shape, plan, std::make_shared<KeepShare>(),
                             std::make_shared<KeepAll>());
  ASSERT_OK(cpu);
  auto cuda = CudaKvCache::Create(shape, plan, std::make_shared<KeepShare>(),
                                  {.num_sequences = 1,
                                   .max_tokens = 300,
                                   .max_chunk_tokens = 20,
                                   .num_heads = c.group});
  ASSERT_OK(cuda);
  for (int i = 0; i < 30; ++i) {
    const int64_t n = i % 2 == 0 ? 1 : 19;
    const auto keys = Normals(n * c.head_dim, 2 * i);
    const auto values = Normals(n * c.head_dim, 2 * i + 1);
    ASSERT_OK((*cpu)->Append(0, n, keys.data(), values.data()));
    ASSERT_OK((*cpu)->FinishChunk(0));
    AppendCuda(**cuda, {{0, n}}, keys, values);
    ASSERT_OK((*cuda)->FinishChunk(0, nullptr));
  }
  ExpectSameStored(c, **cpu, **cuda, 0);
}

// ---- Numbers of other types ----

// Keys and values in half and bfloat16 are what their floats would have been,
// and results are those of float, rounded.
template <typename T>
void ExpectSameInType() {
  Case c = BatchCase();
  c.group = 3;
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  for (const int64_t n : {int64_t{1}, int64_t{37}}) {
    const auto keys = Normals(n * row, 1), values = Normals(n * row, 2);
    const auto queries = Normals(n * row * c.group, 3);
    const auto run = [&](auto tag) {
      using U = decltype(tag);
      const auto cuda = CudaCache(c, 1, 50, 50);
      EXPECT_OK(cuda->BeginChunk({{0, n}}, nullptr));
      const auto as_t = [](std::vector<float> x) {
        for (float& v : x) v = static_cast<float>(Number<T>::From(v));
        return x;
      };
      DeviceRows<U> k(as_t(keys), row), v(as_t(values), row),
          q(as_t(queries), row * c.group), out(queries, row * c.group);
      EXPECT_OK(cuda->Append(0, k.rows(), v.rows(), nullptr));
      EXPECT_OK(cuda->Attention(0, q.rows(), out.mutable_rows(),
                                {.scale = 0.2f}, nullptr));
      EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
      return as_t(out.ToHost());
    };
    EXPECT_EQ(run(T{}), run(float{}));
  }
}

TEST(CudaNumberTest, HalfAndBfloat16InAndOut) {
  ExpectSameInType<__half>();
  ExpectSameInType<__nv_bfloat16>();
}

// ---- Bytes ----

TEST(CudaLedgerTest, BillsWhatIsAllocatedAndPackedBytesAsTheCpu) {
  const Case c = BatchCase();
  const auto cpu = CpuCache(c);
  size_t free_before = 0, free_after = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_before, &total), cudaSuccess);
  const auto cuda = CudaCache(c, 1, 130, 100);
  ASSERT_EQ(cudaMemGetInfo(&free_after, &total), cudaSuccess);
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  const auto keys = Normals(100 * row, 1), values = Normals(100 * row, 2);
  ASSERT_OK(cpu->Append(0, 100, keys.data(), values.data()));
  ASSERT_OK(cpu->FinishChunk(0));
  AppendCuda(*cuda, {{0, 100}}, keys, values);
  ASSERT_OK(cuda->FinishChunk(0, nullptr));
  const MemoryLedger want = cpu->ledger(), got = cuda->ledger();
  for (const auto side : {&MemoryLedger::key, &MemoryLedger::value}) {
    EXPECT_EQ((got.*side).codes, (want.*side).codes);
    EXPECT_EQ((got.*side).scales, (want.*side).scales);
    EXPECT_EQ((got.*side).zeros, (want.*side).zeros);
    EXPECT_EQ((got.*side).sinks, (want.*side).sinks);
    EXPECT_EQ((got.*side).window, (want.*side).window);
    EXPECT_EQ((got.*side).packed_tokens, (want.*side).packed_tokens);
    EXPECT_GE((got.*side).slack, 0);
  }
  EXPECT_GT(got.bookkeeping, 0);
  // A device hands memory out in pages; the emulator, to the byte.
  cudaDeviceProp device;
  ASSERT_EQ(cudaGetDeviceProperties(&device, 0), cudaSuccess);
  if (std::string(device.name) == "CUDA emulator") {
    EXPECT_EQ(got.total(), free_before - free_after);
  }
}

// ---- Errors ----

absl::Status CreateError(const CacheShape& shape, const QuantFormat& key,
                         CudaCacheOptions options) {
  return CudaKvCache::Create(
             shape, PlanOf(key, PerToken(2, 32)),
             std::make_shared<KeepRecent>(testing::KeepRecentOptions()),
             options)
      .status();
}

TEST(CudaErrorTest, CreateSaysWhatIsWrong) {
  const CacheShape shape{.num_layers = 1, .num_kv_heads = 2, .head_dim = 64};
  const CudaCacheOptions options{.num_sequences = 2,
                                 .max_tokens = 64,
                                 .max_chunk_tokens = 64,
                                 .num_heads = 4};
  EXPECT_OK(CreateError(shape, PerChannel(2, 32), options));
  QuantFormat other = PerChannel(4, 32);
  other.set_quantizer("symmetric");
  EXPECT_THAT(
      CreateError(shape, other, options),
      StatusIs(absl::StatusCode::kUnimplemented,
               ::testing::HasSubstr(
                   "layer 0 keys: quantizer \"symmetric\" has no kernels")));
  CachePlan heads = PlanOf(PerChannel(2, 32), PerToken(2, 32));
  heads.set_full_precision(CachePlan::BFLOAT16);
  EXPECT_THAT(
      CudaKvCache::Create(
          shape, heads,
          std::make_shared<KeepRecent>(testing::KeepRecentOptions()), options)
          .status(),
      StatusIs(absl::StatusCode::kUnimplemented,
               ::testing::HasSubstr("full_precision is BFLOAT16")));
  heads.clear_full_precision();
  LayerPlan& layer = *heads.mutable_layer(0);
  *layer.add_key_head() = layer.key();
  *layer.add_key_head() = PerChannel(4, 32);
  layer.clear_key();
  EXPECT_THAT(
      CudaKvCache::Create(
          shape, heads,
          std::make_shared<KeepRecent>(testing::KeepRecentOptions()), options)
          .status(),
      StatusIs(absl::StatusCode::kUnimplemented,
               ::testing::HasSubstr(
                   "layer 0 keys: KV heads have formats of their own")));
  CacheShape wide = shape;
  wide.head_dim = 512;
  EXPECT_THAT(CreateError(wide, PerChannel(2, 32), options),
              StatusIs(absl::StatusCode::kUnimplemented,
                       ::testing::HasSubstr("head_dim is 512")));
  CudaCacheOptions odd = options;
  odd.num_heads = 5;
  EXPECT_THAT(CreateError(shape, PerChannel(2, 32), odd),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("num_heads 5")));
  odd = options;
  odd.max_chunk_tokens = 1;
  EXPECT_THAT(CreateError(shape, PerChannel(2, 32), odd),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("max_chunk_tokens is 1")));
}

TEST(CudaErrorTest, ChunksThatDoNotFit) {
  const Case c = BatchCase();
  const auto cuda = CudaCache(c, 2, 20, 30);
  EXPECT_THAT(cuda->BeginChunk({{1, 21}}, nullptr),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       ::testing::HasSubstr("max_tokens 20")));
  EXPECT_THAT(cuda->BeginChunk({{0, 16}, {1, 16}}, nullptr),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       ::testing::HasSubstr("max_chunk_tokens 30")));
  EXPECT_EQ(cuda->num_tokens(0), 0);
}

TEST(CudaErrorTest, NumbersBeyondHalfAreTold) {
  const Case c = BatchCase();
  const int64_t row = int64_t{c.kv_heads} * c.head_dim;
  for (const int64_t n : {int64_t{1}, int64_t{3}}) {
    for (const float bad : {65520.0f, -INFINITY, NAN}) {
      const auto cuda = CudaCache(c, 1, 10, 10);
      std::vector<float> keys = Normals(n * row, 1), values = keys;
      values[n * row - 3] = bad;
      AppendCuda(*cuda, {{0, n}}, keys, values);
      EXPECT_THAT(
          cuda->CheckNumbers(nullptr),
          StatusIs(absl::StatusCode::kDataLoss, ::testing::HasSubstr("65504")));
      EXPECT_OK(cuda->CheckNumbers(nullptr));
    }
  }
}

TEST(CudaNameTest, SaysWhichKernelRuns) {
  Case c = BatchCase();
  EXPECT_EQ(CudaCache(c, 1, 40, 40)->DecodeKernelName(0),
            "decode, tensor cores, K3 V4");
  c.value = PerToken(5, 32);
  EXPECT_EQ(CudaCache(c, 1, 40, 40)->DecodeKernelName(0),
            "decode, tensor cores, any bits");
  c.key = ThreeBitWords();
  EXPECT_EQ(CudaCache(c, 1, 40, 40)->DecodeKernelName(0),
            "tiled, tensor cores, any format");
}

}  // namespace
}  // namespace kvmix
