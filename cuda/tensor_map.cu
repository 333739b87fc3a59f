#include "tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

namespace ss::cuda {
namespace {

// Of the driver, which is not linked against.
PFN_cuTensorMapEncodeTiled_v12000 find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                       &result) != cudaSuccess ||
      result != cudaDriverEntryPointSuccess)
    return cudaGetLastError(), nullptr;
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
}

bool encode(CUtensorMap& map, const void* matrix, DType type, int64_t rows, int64_t columns, int tile_rows,
            int tile_columns, CUtensorMapSwizzle swizzle) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = find_encoder();
  if (!encoder) return false;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t tile[2] = {static_cast<cuuint32_t>(tile_columns), static_cast<cuuint32_t>(tile_rows)};
  const cuuint32_t each[2] = {1, 1};
  return encoder(&map,
                 type == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                 2, const_cast<void*>(matrix), sizes, strides, tile, each, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

bool tile_map(CUtensorMap& map, const void* matrix, DType type, int64_t rows, int64_t columns,
              int tile_rows) {
  return encode(map, matrix, type, rows, columns, tile_rows, 64, CU_TENSOR_MAP_SWIZZLE_128B);
}
bool plain_map(CUtensorMap& map, const void* matrix, DType type, int64_t rows, int64_t columns, int tile_rows,
               int tile_columns) {
  return encode(map, matrix, type, rows, columns, tile_rows, tile_columns, CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace ss::cuda
