"""Finds the CUDA toolkit: $CUDA_PATH, else /usr/local/cuda. Without one no CUDA target exists, and a line says so.

@cuda//:cuda.bzl   CUDA_AVAILABLE, NVCC (path), CUDA_VERSION
@cuda//:headers    NVIDIA's headers, enough for the run-time library, fp16, bf16 and cuBLAS; plain g++ accepts them
@cuda//:cudart     the static run-time library
"""

# The toolkit has thousands of headers; these are what cuda_runtime.h, cuda_fp16.h, cuda_bf16.h and cublas_v2.h need.
_BUILD = """
package(default_visibility = ["//visibility:public"])
exports_files(["cuda.bzl"])
cc_library(
    name = "headers",
    hdrs = glob(["include/*.h", "include/*.hpp", "include/crt/*", "include/nv/**"]),
    includes = ["include"],
)
cc_library(
    name = "cudart",
    linkopts = ["-L{lib}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"],
    deps = [":headers"],
)
"""

_NO_BUILD = """
package(default_visibility = ["//visibility:public"])
exports_files(["cuda.bzl"])
"""

def _cuda_configure(ctx):
    root = ctx.path(ctx.os.environ.get("CUDA_PATH", "/usr/local/cuda"))
    nvcc = root.get_child("bin").get_child("nvcc")
    version = ""
    if nvcc.exists:
        out = ctx.execute([str(nvcc), "--version"]).stdout
        version = out.split("release ")[-1].split(",")[0] if "release " in out else "unknown"
        ctx.symlink(root.get_child("include"), "include")
        ctx.file("BUILD", _BUILD.format(lib = str(root.get_child("lib64"))))
    else:
        # buildifier: disable=print
        print("no CUDA toolkit under %s: CUDA kernels and their tests are left out" % root)
        ctx.file("BUILD", _NO_BUILD)
    ctx.file("cuda.bzl", 'CUDA_AVAILABLE = %s\nNVCC = "%s"\nCUDA_VERSION = "%s"\n' % (nvcc.exists, str(nvcc), version))

cuda_configure = repository_rule(
    implementation = _cuda_configure,
    environ = ["CUDA_PATH"],
    local = True,
)
