// What candle links besides libcuda, to test layers on its CUDA device without a GPU (scripts/test_candle_cuda.sh):
// handles of cuBLAS and cuRAND, and the one matmul that gradients use. The script makes every other function of these
// libraries end the program with a message. No kernel of candle's own can run.
#include <stdio.h>
#include <stdlib.h>

#define API extern "C" __attribute__((visibility("default"))) int

extern "C" int cuStreamSynchronize(void* stream);

namespace {
int handle;
void* cublas_stream = nullptr;

[[noreturn]] void refuse(const char* what) {
    fprintf(stderr, "emulated cuBLAS: %s is not supported\n", what);
    abort();
}
}  // namespace

API cublasCreate_v2(void** out) {
    *out = &handle;
    return 0;
}
API cublasDestroy_v2(void*) { return 0; }
API cublasSetStream_v2(void*, void* stream) {
    cublas_stream = stream;
    return 0;
}

// C = alpha · op(A) · op(B) + beta · C, column-major, f32, one batch. Waits for the stream and computes at once.
API cublasGemmStridedBatchedEx(void*, int transposes_a, int transposes_b, int m, int n, int k, const float* alpha,
                               const float* a, int a_type, int lda, long long, const float* b, int b_type, int ldb,
                               long long, const float* beta, float* c, int c_type, int ldc, long long, int batches, int,
                               int) {
    // 0: CUDA_R_32F
    if (a_type != 0 || b_type != 0 || c_type != 0) refuse("another type than f32");
    if (batches != 1) refuse("a batch");
    if (int failed = cuStreamSynchronize(cublas_stream)) return failed;
    for (int j = 0; j < n; ++j)
        for (int i = 0; i < m; ++i) {
            float sum = 0;
            for (int p = 0; p < k; ++p) {
                float left = transposes_a ? a[p + (long long)i * lda] : a[i + (long long)p * lda];
                float right = transposes_b ? b[j + (long long)p * ldb] : b[p + (long long)j * ldb];
                sum += left * right;
            }
            float& out = c[i + (long long)j * ldc];
            out = *alpha * sum + (*beta == 0 ? 0 : *beta * out);
        }
    return 0;
}

API curandCreateGenerator(void** out, int) {
    *out = &handle;
    return 0;
}
API curandDestroyGenerator(void*) { return 0; }
API curandSetStream(void*, void*) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return 0; }
