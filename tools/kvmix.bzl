"""Build macros: every target of ours is made with one of these, so warnings are errors everywhere.

kvmix_library / kvmix_binary / kvmix_test   cc_* with our warnings
kvmix_proto                                 a .proto as a C++ library (Debian's protoc)
component                                   a registered component: always linked, tagged with its kind
component_group                             all components of a kind in this package, as one target
"""

WARNINGS = ["-Wall", "-Wextra", "-Werror"]

def kvmix_library(name, copts = [], **kw):
    native.cc_library(name = name, copts = WARNINGS + copts, **kw)

def kvmix_binary(name, copts = [], **kw):
    native.cc_binary(name = name, copts = WARNINGS + copts, **kw)

def kvmix_test(name, srcs = None, copts = [], deps = [], size = "small", linkstatic = True, **kw):
    """A GoogleTest. linkstatic: what the linker drops from a binary is missing from its test, too."""
    native.cc_test(
        name = name,
        srcs = srcs or [name + ".cc"],
        copts = WARNINGS + copts,
        linkstatic = linkstatic,
        size = size,
        deps = deps + ["@system//:gtest_main", "@system//:absl"],
        **kw
    )

def kvmix_proto(name, src, deps = [], **kw):
    """name must end in _cc_proto; deps are other kvmix_proto targets."""
    base = src[:-len(".proto")]
    srcs = [d + "_src" for d in deps]
    native.filegroup(name = name + "_src", srcs = [src] + srcs, visibility = ["//visibility:public"])
    native.genrule(
        name = name + "_gen",
        srcs = [src] + srcs,
        outs = [base + ".pb.h", base + ".pb.cc"],
        cmd = "protoc -I$(GENDIR) -I. -I/usr/include --cpp_out=$(GENDIR) $(location %s)" % src,
    )
    native.cc_library(
        name = name,
        srcs = [base + ".pb.cc"],
        hdrs = [base + ".pb.h"],
        deps = deps + ["@system//:protobuf"],
        **kw
    )

def component(kind, name, srcs = None, options_proto = None, deps = [], proto_deps = [], **kw):
    """A component of `kind`: name.cc, registered under its own name, present in every binary that links the group."""
    data = []
    if options_proto:
        data = [options_proto]  # `kvmix list` prints the options with their comments
        kvmix_proto(name = name + "_cc_proto", src = options_proto, deps = proto_deps, visibility = ["//visibility:public"])
        deps = deps + [":" + name + "_cc_proto"]
    kvmix_library(
        name = name,
        srcs = srcs or [name + ".cc"],
        alwayslink = True,
        tags = [kind],
        data = data,
        deps = deps + [":" + kind],
        **kw
    )

def component_group(name, kind, **kw):
    members = [":" + n for n, r in native.existing_rules().items() if kind in r.get("tags", ())]
    native.cc_library(name = name, deps = sorted(members), **kw)
