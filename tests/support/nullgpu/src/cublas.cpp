// cuBLAS: matrix products that are counted and logged, and compute nothing.
#include "narrow_types.h"

#include <cublasLt.h>
#include <cublas_v2.h>

#include <cstdlib>
#include <cstring>

#include "stand_in.h"

using namespace nullgpu;

namespace {

const char* type_name(int type) {
  switch (type) {
    case CUDA_R_32F: return "fp32";
    case CUDA_R_64F: return "fp64";
    case CUDA_R_16F: return "fp16";
    case CUDA_R_16BF: return "bf16";
    case CUDA_R_8I: return "int8";
    default: return "other";
  }
}

cublasStatus_t product(int left, int right, int result, long m, long n, long k, long batch = 1) {
  counters.matmuls++;
  log_event("matmul %s %s -> %s m %ld n %ld k %ld batch %ld", type_name(left), type_name(right), type_name(result), m,
            n, k, batch);
  return CUBLAS_STATUS_SUCCESS;
}

struct Layout {
  cudaDataType type;
  uint64_t rows, columns;
};

const Layout& layout(cublasLtMatrixLayout_t handle) { return *reinterpret_cast<const Layout*>(handle); }

template <typename Handle>
cublasStatus_t new_handle(Handle* handle) {
  *handle = static_cast<Handle>(calloc(1, 256));
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) { return new_handle(handle); }

cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
  *mode = CUBLAS_DEFAULT_MATH;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) {
  *mode = CUBLAS_POINTER_MODE_HOST;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void*,
                            const void*, cudaDataType a, int, const void*, cudaDataType b, int, const void*, void*,
                            cudaDataType c, int, cublasComputeType_t, cublasGemmAlgo_t) {
  return product(a, b, c, m, n, k);
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float*,
                              const float*, int, const float*, int, const float*, float*, int) {
  return product(CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, m, n, k);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                                          const void*, const void*, cudaDataType a, int, long long, const void*,
                                          cudaDataType b, int, long long, const void*, void*, cudaDataType c, int,
                                          long long, int batch, cublasComputeType_t, cublasGemmAlgo_t) {
  return product(a, b, c, m, n, k, batch);
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                                         const float*, const float*, int, long long, const float*, int, long long,
                                         const float*, float*, int, long long, int batch) {
  return product(CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, m, n, k, batch);
}

// ---- cublasLt

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* handle, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t) {
  *handle = reinterpret_cast<cublasLtMatrixLayout_t>(new Layout{type, rows, columns});
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t handle) {
  delete reinterpret_cast<Layout*>(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* handle, cublasComputeType_t, cudaDataType) {
  return new_handle(handle);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t handle) {
  free(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* handle) { return new_handle(handle); }

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t handle) {
  free(handle);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  memset(results, 0, sizeof *results);
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*, cublasLtMatrixLayout_t a,
                              const void*, cublasLtMatrixLayout_t b, const void*, const void*, cublasLtMatrixLayout_t,
                              void*, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t*, void*, size_t,
                              cudaStream_t) {
  return product(layout(a).type, layout(b).type, layout(d).type, layout(d).rows, layout(d).columns, layout(a).columns);
}

size_t cublasLtGetVersion() { return 130100; }
}
