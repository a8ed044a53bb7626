"""A cuBLAS that works on the memory of the host."""

import cupy
import ml_dtypes
import numpy as np

DTYPES = {"CUDA_R_32F": "f4", "CUDA_R_64F": "f8", "CUDA_C_32F": "c8", "CUDA_C_64F": "c16", "CUDA_R_16F": "f2"}
DTYPES["CUDA_R_16BF"] = ml_dtypes.bfloat16


class HostBlas:
    """The one function of cuBLAS, after its documentation: column by column, leading dimensions, strides of a stack."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT = 0, 1, -1
    CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 70, 77

    HANDLE = 17

    def __init__(self, longest=2**31 - 1):
        self.calls = []
        self.askew = 0  # stacks of half types that cuBLAS may refuse
        self.longest = longest
        self.mode = self.callers_mode = 3  # of a caller who wants TF32 in all of his products

    def getMathMode(self, handle):
        return self.mode

    def setMathMode(self, handle, mode):
        self.mode = mode

    def gemmStridedBatchedEx(
        self,
        handle,
        opa,
        opb,
        m,
        n,
        k,
        alpha,
        a,
        ta,
        lda,
        sa,
        b,
        tb,
        ldb,
        sb,
        beta,
        c,
        tc,
        ldc,
        sc,
        count,
        compute,
        algo,
    ):
        assert handle == self.HANDLE
        assert self.mode == 16  # neither TF32 nor sums in half precision, but where the product itself asks for it
        assert algo == self.CUBLAS_GEMM_DEFAULT
        assert lda >= (m if opa == 0 else k)
        assert ldb >= (k if opb == 0 else n)
        assert ldc >= m
        assert max(lda, ldb, ldc) <= self.longest
        assert min(sa, sb, sc) >= 0
        for pointer, kind, step in ((a, ta, sa), (b, tb, sb), (c, tc, sc)):
            size = 2 if kind in {cupy.cuda.runtime.CUDA_R_16F, cupy.cuda.runtime.CUDA_R_16BF} else 16
            self.askew += count > 1 and step > 0 and size == 2 and (pointer % 16 > 0 or step * size % 16 > 0)
        self.calls.append((count, compute))
        for i in range(count):
            left = self._matrix(a, ta, lda, sa * i, (m, k) if opa == 0 else (k, m))
            right = self._matrix(b, tb, ldb, sb * i, (k, n) if opb == 0 else (n, k))
            left, right = (left if opa == 0 else left.T), (right if opb == 0 else right.T)
            out = self._matrix(c, tc, ldc, sc * i, (m, n))
            kind = np.dtype("f4" if out.dtype.itemsize == 2 else out.dtype)
            one, start = (self._matrix(p, kind, 1, 0, (1, 1))[0, 0] for p in (alpha, beta))
            wide = one * (left.astype(kind) @ right.astype(kind))
            out[...] = wide + start * out if start else wide

    @staticmethod
    def _matrix(pointer, kind, leading, offset, shape):
        names = {getattr(cupy.cuda.runtime, name): dtype for name, dtype in DTYPES.items()}
        dtype = np.dtype(names.get(kind, kind) if isinstance(kind, int) else kind)
        span = offset + (shape[1] - 1) * leading + shape[0]
        memory = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_ubyte * (span * dtype.itemsize)).from_address(pointer))
        flat = memory.view(dtype)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, (dtype.itemsize, leading * dtype.itemsize))
