// Packed sequences, the rows of a state pool that they own, and how they are cut into pieces.
#pragma once
#include "fault.cuh"

namespace ss::cuda {

// Into pieces of how many tokens sequences are cut: 1 << shift where it is given as an int, which needs no
// division, or any number.
struct Cut {
  uint32_t tokens;
};
constexpr int kWhole = 31;            // each sequence is one piece
constexpr Cut kUncut{1u << kWhole};  // the same

__host__ __device__ inline int64_t tokens_of(int shift) { return int64_t{1} << shift; }
__host__ __device__ inline int64_t tokens_of(Cut cut) { return cut.tokens; }
__host__ __device__ inline int64_t pieces_in(int64_t tokens, int shift) { return tokens >> shift; }
__host__ __device__ inline int64_t pieces_in(int64_t tokens, Cut cut) {
  return tokens < 0 ? int64_t{-1} : int64_t{static_cast<uint32_t>(tokens) / cut.tokens};
}

struct Sequences {
  const int32_t* offsets;       // [count + 1]
  const int32_t* slots;         // [count], or null: sequence i owns row i
  int64_t count, pool, tokens;  // pool: rows of state, 0 where there is none
  Fault *bad_offset, *bad_end, *bad_slot;

  struct Piece {
    int64_t sequence, start, stop;  // the sequence and its tokens
    int64_t begin, end;             // the piece's tokens; none where begin >= end
  };

  // The host cannot read offsets: it launches this many pieces, whatever they hold. Sequence i takes the
  // numbers from pieces_in(offsets[i]) + i on, enough for its tokens.
  template <class C>
  __host__ __device__ int64_t pieces(C cut) const {
    return pieces_in(tokens, cut) + count;
  }

  template <class C>
  __device__ int64_t first_piece(int64_t i, C cut) const {
    return pieces_in(clamp(offsets[i], 0), cut) + i;
  }
  __device__ Piece whole(int64_t i) const {
    const int64_t start = clamp(offsets[i], 0), stop = clamp(offsets[i + 1], start);
    return {i, start, stop, start, stop};
  }

  // Bad offsets make bad pieces, but none that reaches beyond the tokens.
  template <class C>
  __device__ Piece piece(int64_t number, C cut) const {
    int64_t i = number, skipped = 0;
    if (tokens_of(cut) < tokens_of(kWhole)) {
      i = 0;
      for (int64_t end = count; end - i > 1;) {  // the last whose numbers start here or before
        const int64_t middle = (i + end) / 2;
        (pieces_in(offsets[middle], cut) + middle <= number ? i : end) = middle;
      }
      skipped = number - (pieces_in(offsets[i], cut) + i);
      skipped = skipped < 0 ? 0 : skipped * tokens_of(cut);
    }
    return part(i, skipped, tokens_of(cut));
  }

  // The same for all lanes of a warp that call it together: a search of 32 steps' reach for one
  // load, which a block's first load of anything else waits for.
  __device__ Piece piece_by_warp(int64_t number, int shift) const {
    int64_t i = number, skipped = 0;
    if (shift < kWhole) {
      i = 0;
      for (int64_t end = count; end - i > 1;) {
        const int64_t step = (end - i + 31) / 32, at = i + threadIdx.x % 32 * step;
        const bool before = at < end && (offsets[at] >> shift) + at <= number;
        const int passed = __ffs(~__ballot_sync(~0u, before)) - 1;  // -1: all
        i += (passed < 0 ? 31 : passed > 0 ? passed - 1 : 0) * step;
        end = i + step < end ? i + step : end;
      }
      skipped = number - ((offsets[i] >> shift) + i);
      skipped = skipped < 0 ? 0 : skipped << shift;
    }
    return part(i, skipped, tokens_of(shift));
  }

  // Negative: starts from zero and leaves nothing.
  __device__ int64_t slot(int64_t i) const {
    if (pool == 0) return -1;
    const int64_t row = slots ? slots[i] : i;
    return row < pool ? row : -1;
  }

  // Reports what is wrong, once a launch: all threads call it.
  __device__ void check() const {
    if (blockIdx.x != 0) return;
    for (int64_t i = threadIdx.x; i <= count; i += blockDim.x) {
      const int32_t at = offsets[i];
      if (i == 0 ? at != 0 : at < offsets[i - 1]) bad_offset->report(i, at, 0);
      if (i == count && at != tokens) bad_end->report(i, at, tokens);
      if (i < count && slots && pool > 0 && slots[i] >= pool) bad_slot->report(i, slots[i], pool);
    }
  }

 private:
  __device__ Piece part(int64_t i, int64_t skipped, int64_t most) const {
    const int64_t start = clamp(offsets[i], 0), stop = clamp(offsets[i + 1], start);
    const int64_t begin = start + skipped, end = begin + most;
    return {i, start, stop, begin, end < stop ? end : stop};
  }
  __device__ int64_t clamp(int64_t token, int64_t low) const {
    return token < low ? low : token < tokens ? token : tokens;
  }
};

}  // namespace ss::cuda
