// KvStream's ways to take tokens out, to pass them between formats and to
// demote them, against a plain list of rows.
#include "attention/kv_stream.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "attention/counting_resource.h"
#include "gtest/gtest.h"
#include "kvmix/base/random.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using testing::CountingResource;

constexpr int kDim = 32;

std::unique_ptr<BlockCodec> Codec(Side side, int bits, QuantFormat::Axis axis,
                                  int group) {
  QuantFormat format;
  format.set_quantizer("group_affine");
  format.set_bits(bits);
  format.set_axis(axis);
  format.set_group_size(group);
  auto codec = MakeBlockCodec(format, side, kDim);
  EXPECT_OK(codec);
  return *std::move(codec);
}

// A stream and the rows that it should hold, in order.
class Checked {
 public:
  Checked(Side side, const KvStream::Formats& formats, int64_t sinks,
          std::pmr::memory_resource* memory, uint64_t seed)
      : stream_(side, formats, kDim, sinks, memory),
        sinks_(sinks),
        random_(seed, 0) {}

  KvStream& stream() { return stream_; }
  int64_t size() const { return static_cast<int64_t>(rows_.size()); }

  void Append(int64_t count) {
    std::vector<float> x(count * kDim);
    for (float& v : x) v = static_cast<float>(random_.Normal());
    stream_.Append(x.data(), kDim, count);
    for (int64_t t = 0; t < count; ++t)
      rows_.emplace_back(x.begin() + t * kDim, x.begin() + (t + 1) * kDim);
  }
  // About `share` of tokens [first, last), `multiple` at a time.
  std::vector<int64_t> Draw(int64_t first, int64_t last, double share,
                            int64_t multiple) {
    std::vector<int64_t> drawn;
    for (int64_t t = first; t < last; ++t)
      if (random_.Uniform() < share) drawn.push_back(t);
    drawn.resize(drawn.size() / multiple * multiple);
    return drawn;
  }
  void Remove(const std::vector<int64_t>& tokens) {
    stream_.Remove(tokens);
    for (auto t = tokens.rbegin(); t != tokens.rend(); ++t)
      rows_.erase(rows_.begin() + *t);
  }
  void Demote(const std::vector<int64_t>& tokens) {
    const int64_t end = stream_.num_sinks() + stream_.demoted_tokens();
    stream_.Demote(tokens);
    std::vector<std::vector<float>> moved;
    for (const int64_t t : tokens) moved.push_back(rows_[t]);
    for (auto t = tokens.rbegin(); t != tokens.rend(); ++t)
      rows_.erase(rows_.begin() + *t);
    rows_.insert(rows_.begin() + end, moved.begin(), moved.end());
  }

  void ExpectHolds(float tolerance) {
    ASSERT_EQ(stream_.num_tokens(), size());
    std::vector<float> x(size() * kDim);
    stream_.ReadTokens(0, size(), x.data());
    for (int64_t t = 0; t < size(); ++t)
      for (int d = 0; d < kDim; ++d)
        ASSERT_NEAR(x[t * kDim + d], rows_[t][d],
                    t < stream_.num_sinks() ? 2e-3f : tolerance)
            << "token " << t;
    LedgerSide bill;
    stream_.AddTo(bill);
    ASSERT_GE(bill.slack, 0);
    ASSERT_EQ(bill.packed_tokens + bill.full_precision_tokens, size());
  }
  CounterRandom& random() { return random_; }

 private:
  KvStream stream_;
  const int64_t sinks_;
  CounterRandom random_;
  std::vector<std::vector<float>> rows_;
};

TEST(KvStreamTest, TokensOfTheWindowAreTakenOutExactly) {
  for (Side side : {Side::kKey, Side::kValue}) {
    CountingResource memory;
    Checked s(side, {}, /*sinks=*/5, &memory, 1);
    for (int i = 0; i < 20; ++i) {
      s.Append(40);
      s.Remove(s.Draw(5, s.size(), 0.5, 1));
      s.ExpectHolds(2e-3f);
    }
    const int64_t before = memory.allocated;
    std::vector<int64_t> most(s.size() - 6);
    for (size_t i = 0; i < most.size(); ++i) most[i] = 5 + i;
    s.Remove(most);
    EXPECT_LT(memory.allocated, before);
    EXPECT_LE(memory.allocated, (5 + KvStream::kPageTokens) * kDim * 2 + 512);
    s.ExpectHolds(2e-3f);
  }
}

// Packed per token, per channel, in groups that do not divide a page, in two
// runs, with demotion: 8 bits, so that a token is still known after many turns.
TEST(KvStreamTest, HoldsTheRightTokensWhateverIsDone) {
  const auto per_token = QuantFormat::PER_TOKEN;
  const auto per_channel = QuantFormat::PER_CHANNEL;
  for (Side side : {Side::kKey, Side::kValue}) {
    const auto token = Codec(side, 8, per_token, 32);
    const auto channel = Codec(side, 8, per_channel, 32);
    const auto odd = Codec(side, 8, per_channel, 20);
    const std::vector<KvStream::Formats> all = {
        {.by_age = {token.get()}},
        {.by_age = {channel.get()}},
        {.by_age = {odd.get()}},
        {.by_age = {channel.get(), token.get()}},
        {.by_age = {odd.get(), channel.get()}},
        {.demoted = channel.get(), .by_age = {}},
        {.demoted = odd.get(), .by_age = {channel.get(), token.get()}}};
    for (size_t f = 0; f < all.size(); ++f) {
      CountingResource memory;
      {
        Checked s(side, all[f], /*sinks=*/f % 2 * 7, &memory, f);
        for (int turn = 0; turn < 60; ++turn) {
          s.Append(1 + static_cast<int64_t>(s.random().Below(50)));
          KvStream& stream = s.stream();
          if (stream.codec() != nullptr) {
            const int64_t g = stream.codec()->granularity();
            stream.QuantizeOldest(static_cast<int64_t>(s.random().Below(
                                      stream.window_tokens() / g + 1)) *
                                  g);
          }
          for (int run = stream.num_age_runs() - 1; run > 0; --run) {
            const int64_t step = stream.AgingStep(run);
            stream.Age(run, stream.age_tokens(run) / 2 / step * step);
          }
          s.ExpectHolds(0.15f);
          const int64_t first = stream.num_sinks() + stream.demoted_tokens();
          if (all[f].demoted != nullptr && turn % 4 == 1)
            s.Demote(
                s.Draw(first, s.size(), 0.5, all[f].demoted->granularity()));
          if (turn % 3 == 2)
            s.Remove(s.Draw(stream.num_sinks(), s.size(), 0.3, 1));
          s.ExpectHolds(0.15f);
        }
        LedgerSide bill;
        const int64_t tables = s.stream().AddTo(bill);
        EXPECT_EQ(bill.bytes() + tables, memory.allocated);
      }
      EXPECT_EQ(memory.allocated, 0);
    }
  }
}

// Blocks before the first token that leaves are not touched.
TEST(KvStreamTest, BlocksBeforeTheFirstTokenThatLeavesStayAsTheyAre) {
  const auto codec = Codec(Side::kKey, 2, QuantFormat::PER_CHANNEL, 32);
  CountingResource memory;
  Checked s(Side::kKey, {.by_age = {codec.get()}}, 0, &memory, 1);
  s.Append(200);
  s.stream().QuantizeOldest(192);
  std::vector<float> before(64 * kDim), after(64 * kDim);
  s.stream().ReadTokens(0, 64, before.data());
  s.Remove({64, 70, 150});
  s.stream().ReadTokens(0, 64, after.data());
  EXPECT_EQ(before, after);
  // 189 packed tokens stay: five blocks, and 29 that go to the window.
  EXPECT_EQ(s.stream().packed_tokens(), 160);
  EXPECT_EQ(s.stream().window_tokens(), 29 + 8);
}

// What is demoted in whole blocks has the bytes of what is quantized so at
// once.
TEST(KvStreamTest, DemotionOfTheWindowIsDirectQuantization) {
  for (Side side : {Side::kKey, Side::kValue}) {
    const auto codec = Codec(side, 2, QuantFormat::PER_CHANNEL, 32);
    CountingResource memory;
    Checked demoted(side, {.demoted = codec.get(), .by_age = {}}, 0, &memory,
                    1);
    Checked direct(side, {.by_age = {codec.get()}}, 0, &memory, 1);
    demoted.Append(100);
    direct.Append(100);
    std::vector<int64_t> oldest(64);
    for (int64_t t = 0; t < 64; ++t) oldest[t] = t;
    demoted.Demote(oldest);
    direct.stream().QuantizeOldest(64);
    for (const int64_t t : {0, 32}) {
      const auto a = demoted.stream().PieceAt(t);
      const auto b = direct.stream().PieceAt(t);
      EXPECT_TRUE(
          std::equal(a.block, a.block + codec->bytes().total(), b.block));
    }
    EXPECT_EQ(demoted.stream().window_tokens(), 36);
  }
}

}  // namespace
}  // namespace kvmix
