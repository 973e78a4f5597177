"""cuda_library: a .cu file compiled by nvcc for sm_80 and sm_90a, as a cc_library. Only with a toolkit (see third_party/cuda)."""

load("@cuda//:cuda.bzl", "CUDA_AVAILABLE", "NVCC")

_ARCHITECTURES = ["80", "90a"]

def cuda_library(name, srcs, hdrs, cuda_hdrs = [], deps = [], alwayslink = False, **kw):
    """cuda_hdrs: headers of other packages that the .cu files include; deps: what the object files link with."""
    if not CUDA_AVAILABLE:
        fail("cuda_library %s: no CUDA toolkit; choose the target by CUDA_AVAILABLE of @cuda//:cuda.bzl" % name)
    objects = []
    for src in srcs:
        object = src + ".o"
        native.genrule(
            name = name + "_" + src.replace(".", "_"),
            srcs = [src] + hdrs + cuda_hdrs,
            outs = [object],
            cmd = " ".join(
                [NVCC, "-std=c++17", "-O3", "-Xcompiler=-Wall,-Wextra,-fPIC", "-Werror=all-warnings", "-I."] +
                ["-gencode=arch=compute_%s,code=sm_%s" % (a, a) for a in _ARCHITECTURES] +
                ["-c $(location %s) -o $@" % src],
            ),
        )
        objects.append(object)
    native.genrule(
        name = name + "_archive",
        srcs = objects,
        outs = ["lib%s_cuda.a" % name],
        cmd = "ar rcs $@ $(SRCS)",
    )
    native.cc_import(name = name + "_import", static_library = "lib%s_cuda.a" % name, alwayslink = alwayslink)
    native.cc_library(name = name, hdrs = hdrs, deps = deps + [":" + name + "_import", "@cuda//:cudart"], **kw)
