#include "kvmix/base/registry.h"

#include <memory>
#include <string>

#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"
#include "gtest/gtest.h"
#include "kvmix/base/status_matchers.h"

namespace kvmix {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::StatusIs;

struct Animal {
  virtual ~Animal() = default;
  virtual int64_t Legs() const = 0;
};
struct Insect : Animal {
  explicit Insect(int64_t legs) : legs(legs) {}
  int64_t Legs() const override { return legs; }
  int64_t legs;
};

using AnimalRegistry = Registry<Animal>;

// A registry of the test's own: "ant" without options, "centipede" with a
// Duration, whose seconds are its legs.
AnimalRegistry TestRegistry() {
  AnimalRegistry registry;
  registry.Add("ant", "six legs",
               [](const google::protobuf::Empty&) -> AnimalRegistry::Result {
                 return std::make_unique<Insect>(6);
               });
  registry.Add<google::protobuf::Duration>(
      "centipede", "as many legs as it is given",
      [](const google::protobuf::Duration& options) -> AnimalRegistry::Result {
        if (options.seconds() % 2 != 0)
          return absl::InvalidArgumentError("seconds is odd");
        return std::make_unique<Insect>(options.seconds());
      });
  return registry;
}

Component Named(const std::string& name) {
  Component component;
  component.set_name(name);
  return component;
}

Component Centipede(int64_t seconds) {
  Component component = Named("centipede");
  google::protobuf::Duration options;
  options.set_seconds(seconds);
  component.mutable_options()->PackFrom(options);
  return component;
}

TEST(RegistryTest, MakesAComponentFromItsNameAndOptions) {
  const AnimalRegistry registry = TestRegistry();
  ASSERT_OK_AND_ASSIGN(const auto ant, registry.Make(Named("ant"), "animal"));
  EXPECT_EQ(ant->Legs(), 6);
  ASSERT_OK_AND_ASSIGN(const auto centipede,
                       registry.Make(Centipede(30), "animal"));
  EXPECT_EQ(centipede->Legs(), 30);
}

TEST(RegistryTest, NoOptionsMeansDefaultOptions) {
  ASSERT_OK_AND_ASSIGN(const auto centipede,
                       TestRegistry().Make(Named("centipede"), "animal"));
  EXPECT_EQ(centipede->Legs(), 0);
}

TEST(RegistryTest, UnknownNameListsLinkedOnes) {
  EXPECT_THAT(TestRegistry().Make(Named("bee"), "animal").status(),
              StatusIs(absl::StatusCode::kNotFound,
                       "animal \"bee\" is not linked into this binary; linked: "
                       "ant, centipede"));
  EXPECT_THAT(AnimalRegistry().Make(Named("bee"), "animal").status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("linked: none")));
}

TEST(RegistryTest, OptionsOfAnotherTypeAreRefused) {
  Component wrong = Named("centipede");
  wrong.mutable_options()->PackFrom(google::protobuf::Timestamp());
  EXPECT_THAT(TestRegistry().Make(wrong, "animal").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "animal \"centipede\" takes options of type "
                       "google.protobuf.Duration but the config gives "
                       "google.protobuf.Timestamp"));
  wrong.set_name("ant");
  EXPECT_THAT(TestRegistry().Make(wrong, "animal").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "animal \"ant\" takes no options but the config gives "
                       "google.protobuf.Timestamp"));
}

TEST(RegistryTest, OptionsThatDoNotParseAreRefused) {
  Component broken = Centipede(2);
  broken.mutable_options()->set_value("\xff\xff\xff");
  EXPECT_THAT(TestRegistry().Make(broken, "animal").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("not a readable google.protobuf.Duration")));
}

TEST(RegistryTest, AFailedComponentIsNamed) {
  EXPECT_THAT(TestRegistry().Make(Centipede(3), "animal").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       "animal \"centipede\": seconds is odd"));
}

TEST(RegistryTest, KnowsNamesAndOptionsInOrder) {
  const AnimalRegistry registry = TestRegistry();
  EXPECT_THAT(registry.Names(), ElementsAre("ant", "centipede"));
  EXPECT_FALSE(AnimalRegistry::TakesOptions(registry.entries().at("ant")));
  EXPECT_TRUE(AnimalRegistry::TakesOptions(registry.entries().at("centipede")));
  EXPECT_EQ(registry.entries().at("ant").summary, "six legs");
}

TEST(RegistryDeathTest, ANameRegisteredTwiceAborts) {
  AnimalRegistry registry = TestRegistry();
  EXPECT_DEATH(registry.Add("ant", "again",
                            [](const google::protobuf::Empty&)
                                -> AnimalRegistry::Result { return nullptr; }),
               "\"ant\" is registered twice");
}

}  // namespace
}  // namespace kvmix
