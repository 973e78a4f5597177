"""CUDA kernels, four times: by nvcc for a device, and by g++ for each variant of the emulator (tools/cuda_emulator).

kvmix_cuda_kernels   .cu files: `name` (headers alone), `name_gpu` (nvcc), `name_fast`, `name_asan`, `name_check`
kvmix_cuda_test      a GoogleTest over kernels: `name_fast`, `name_asan`, `name_check`, and `name_gpu`, which is skipped where
                     there is no device
cuda_linked          what a program links, nvcc's code and the real libraries or the emulator: --define=cuda=emulated

Host code that calls kernels, the run-time library or cuBLAS is a kvmix_library that depends on headers: `name` of the kernels,
@cuda//:headers. Who makes a test or a program chooses what all of it is linked with, once: `name_gpu` brings the real libraries,
`name_fast` the emulator. Kernels and emulator are linked whole, so the order of archives does not matter. (A host library may
name @cuda//:cudart: the linker sees it last, when the emulator has left nothing to define.)

Without a toolkit these macros make nothing; lists go through when_cuda().
"""

load("@cuda//:cuda.bzl", "CUDA_AVAILABLE", "NVCC")
load(":kvmix.bzl", "WARNINGS", "kvmix_library")

ARCHITECTURES = ["80", "90a"]

# fast: order of threads, three seeds. asan: memory errors. check: races, uninitialised reads, wild addresses; g++ reports
# every load and store by a call, libtsan is not linked.
_ASAN = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
VARIANTS = {
    "fast": struct(copts = ["-O2"], linkopts = [], kernel_copts = ["-O3"], checker = "no_check.cc", args = ["--gtest_repeat=3"]),
    "asan": struct(copts = ["-O1", "-g1"] + _ASAN, linkopts = _ASAN, kernel_copts = [], checker = "no_check.cc", args = []),
    "check": struct(copts = ["-O1", "-g1", "-DEMU_CHECK"], linkopts = [], kernel_copts = ["-fsanitize=thread"], checker = "check.cc", args = []),
}

# Kernels cast between vector types, and carry pragmas of nvcc's.
_COPTS = WARNINGS + ["-fno-strict-aliasing", "-Wno-unknown-pragmas"]

# The variants bring their own sanitizers: bazel test --config=asan leaves them out.
_TAGS = ["cuda_emulator"]

def when_cuda(labels, otherwise = []):
    return labels if CUDA_AVAILABLE else otherwise

def _nvcc_impl(ctx):
    headers = depset(ctx.files.hdrs, transitive = [d[CcInfo].compilation_context.headers for d in ctx.attr.deps])
    objects = []
    reports = []
    for src in ctx.files.srcs:
        object = ctx.actions.declare_file("%s/%s.o" % (ctx.label.name, src.basename))
        report = ctx.actions.declare_file("%s/%s.ptxas" % (ctx.label.name, src.basename))
        command = " ".join(
            [NVCC, "-std=c++20", "-O3", "-lineinfo", "-I.", "-I" + ctx.bin_dir.path] +
            ["-Xcompiler=-Wall,-Wextra,-fPIC", "-Werror=all-warnings", "-Xptxas=-v"] +
            ["-gencode=arch=compute_%s,code=sm_%s" % (a, a) for a in ARCHITECTURES] +
            ["-c", src.path, "-o", object.path],
        )
        ctx.actions.run_shell(
            # The assembler's report goes to a file; when the compiler fails, it is what the user must see.
            command = "%s > %s 2>&1 || { cat %s; exit 1; }" % (command, report.path, report.path),
            inputs = depset([src], transitive = [headers]),
            outputs = [object, report],
            mnemonic = "Nvcc",
            progress_message = "Compiling %s with nvcc" % src.short_path,
            use_default_shell_env = True,
        )
        objects.append(object)
        reports.append(report)
    ctx.actions.run_shell(
        command = "rm -f {0} && ar rcs {0} {1}".format(ctx.outputs.archive.path, " ".join([o.path for o in objects])),
        inputs = objects,
        outputs = [ctx.outputs.archive],
        mnemonic = "NvccArchive",
        use_default_shell_env = True,
    )
    ctx.actions.run_shell(
        command = "cat %s > %s" % (" ".join([r.path for r in reports]), ctx.outputs.report.path),
        inputs = reports,
        outputs = [ctx.outputs.report],
        mnemonic = "NvccReport",
    )

_nvcc = rule(
    implementation = _nvcc_impl,
    attrs = {
        "srcs": attr.label_list(allow_files = [".cu"], mandatory = True),
        "hdrs": attr.label_list(allow_files = True),
        "deps": attr.label_list(providers = [CcInfo]),
        "archive": attr.output(mandatory = True),
        "report": attr.output(mandatory = True),
    },
)

def emulator_library(name, variant):
    v = VARIANTS[variant]
    native.cc_library(
        name = name,
        srcs = ["cublas.cc", "cudart.cc", "internal.h", "matrix_product.cc", "matrix_product.h", "scheduler.cc", "tensor_cores.cc", v.checker],
        hdrs = ["device_functions.h", "emulator.h", "tensor_cores.h"],
        copts = _COPTS + v.copts,
        linkopts = v.linkopts,
        linkstatic = True,  # the checker takes the program's own image for static storage
        alwayslink = True,
        tags = _TAGS,
        deps = ["//kvmix/base:half", "@cuda//:headers", "@system//:boost_context", "@system//:highway"],
    )

def kvmix_cuda_kernels(name, srcs, hdrs, deps = [], kernels = [], **kw):
    """deps: libraries of headers for host and device; kernels: other kvmix_cuda_kernels that come along.

    `name_gpu.ptxas` is the assembler's report: registers, shared memory and spills of every kernel.
    """
    if not CUDA_AVAILABLE:
        return
    headers = deps + ["//kvmix/base:cuda", "@cuda//:headers"]
    kvmix_library(name = name, hdrs = hdrs, deps = headers + kernels, **kw)
    kernel_deps = {v: [_variant(k, v) for k in kernels] for v in VARIANTS.keys() + ["gpu"]}
    if srcs:
        _nvcc(
            name = name + "_nvcc",
            srcs = srcs,
            hdrs = hdrs,
            deps = headers + kernels,
            archive = "lib%s_gpu.a" % name,
            report = name + "_gpu.ptxas",
        )
        native.cc_import(name = name + "_import", static_library = "lib%s_gpu.a" % name, alwayslink = True)
        kernel_deps["gpu"] = kernel_deps["gpu"] + [name + "_import"]
    native.cc_library(name = name + "_gpu", deps = [name, "@cuda//:cudart", "//third_party/cuda:cublas"] + kernel_deps["gpu"], **kw)
    for variant, v in VARIANTS.items():
        native.cc_library(
            name = _variant(name, variant),
            srcs = srcs,
            hdrs = hdrs,
            copts = ["-x", "c++"] + _COPTS + v.copts + v.kernel_copts,
            linkstatic = True,
            alwayslink = True,
            tags = _TAGS,
            deps = headers + kernels + kernel_deps[variant] + [emulator(variant)],
            **kw
        )

def _variant(label, variant):
    """//a:b -> //a:b_fast; //a/b -> //a/b:b_fast."""
    if ":" not in label and label.startswith("//"):
        label += ":" + label.split("/")[-1]
    return label + "_" + variant

def emulator(variant):
    return "//tools/cuda_emulator:emulator_" + variant

def kvmix_cuda_test(name, srcs = None, kernels = [], deps = [], args = [], copts = [], size = "small", variants = VARIANTS.keys(), gpu = True, **kw):
    """variants: of the emulator; gpu: also for a device."""
    if not CUDA_AVAILABLE:
        return
    srcs = srcs or [name + ".cc"]
    common = deps + kernels + ["@system//:gtest_main", "@system//:absl"]
    for variant in variants:
        v = VARIANTS[variant]
        native.cc_test(
            name = _variant(name, variant),
            srcs = srcs,
            copts = _COPTS + copts + v.copts,
            args = v.args + args,
            linkstatic = True,
            size = size,
            tags = _TAGS,
            deps = ["//tools/cuda_emulator:test_main_" + variant] + common + [_variant(k, variant) for k in kernels],
            **kw
        )
    if gpu:
        native.cc_test(
            name = name + "_gpu",
            srcs = srcs,
            copts = _COPTS + copts,
            args = args,
            linkstatic = True,
            size = size,
            tags = ["gpu"],
            deps = ["//tools/cuda_emulator:test_main_gpu"] + common + [_variant(k, "gpu") for k in kernels],
            **kw
        )

def cuda_linked(kernels):
    """deps of a program that uses these kvmix_cuda_kernels."""
    if not CUDA_AVAILABLE:
        return []
    return select({
        "//tools:cuda_emulated": [_variant(k, "fast") for k in kernels],
        "//conditions:default": [_variant(k, "gpu") for k in kernels],
    })
