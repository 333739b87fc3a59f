// How the copy engine is told of a matrix that it brings tile by tile.
#pragma once
#include <cuda.h>

#include "../native/tensor.h"

namespace ss::cuda {

// Tiles of `tile_rows` rows by 64 columns of a dense matrix of halves; in shared memory rows of 128
// bytes that are swizzled. False if the driver does not know how, or the address is no multiple of 16.
bool tile_map(CUtensorMap& map, const void* matrix, DType type, int64_t rows, int64_t columns,
              int tile_rows);

// The same of `tile_columns` columns, as they lie: no multiple of 16 bytes, no map.
bool plain_map(CUtensorMap& map, const void* matrix, DType type, int64_t rows, int64_t columns, int tile_rows,
               int tile_columns);

}  // namespace ss::cuda
