// A Mamba mixer between its in_proj and out_proj, for one token of each sequence:
//   u   = silu(causal_conv1d(x)),  dbc = u x_proj^T             // [b, d], [b, k]; xz = x | z
//   y   = selective_scan(u, dbc[:r] dt_weight^T, B and C = the rest of dbc) * silu(z)
// with the roundings of those ops. It moves the weights once, 2 d k + 2 d r bytes, and for each
// sequence its states, 2 d n as many as they have bytes. Few sequences: device/mamba_step_one.cuh, one
// kernel; many: device/mamba_step_project.cuh and mamba_step_update.cuh, two. Both want clusters of
// blocks, one half type for activations and weights, 16 states and 4 taps; the rest goes through the
// ops themselves. Many of a published model: mamba_step_many.cu.
#include "card.h"
#include "device/mamba_step_one.cuh"
#include "device/mamba_step_project.cuh"
#include "device/mamba_step_update.cuh"
#include "dispatch.cuh"
#include "launch.cuh"
#include "mamba_step_many.h"
#include "step_kernels.h"

namespace ss::cuda {

void causal_conv1d(Stream&, In x, In weight, Opt bias, In offsets, Opt slots, OptInOut state,
                   bool silu, Out y);
void matmul(Stream&, In x, In weight, Opt bias, Out y);
void selective_scan(Stream&, In u, In delta, In A, In B, In C, Opt D, Opt z, Opt delta_bias,
                    In offsets, Opt slots, OptInOut state, bool delta_softplus, Out y);

namespace {

constexpr int kMostShared = 48 * 1024;  // bytes, without asking for more
constexpr int kOneWeights = 48 * 1024;  // of a slice, in elements

template <class... P, class... A>
void launch_clusters(Stream& stream, void (*kernel)(P...), int clusters, int blocks, int threads,
                     int bytes, A&&... arguments) {
  // Clusters of 16 are not portable: a card must be asked for them.
  if (blocks > 8) cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  launch(stream.handle, kernel,
         Grid{static_cast<unsigned>(clusters * blocks), static_cast<unsigned>(threads),
              static_cast<size_t>(bytes), static_cast<unsigned>(blocks)},
         arguments...);
}

// What the kernels of other ops would not find wrong.
__global__ void check(const int32_t* offsets, int64_t count, Fault* bad_offset) {
  for (int64_t i = threadIdx.x; i <= count; i += blockDim.x)
    if (offsets[i] != i) bad_offset->report(i, offsets[i], i);
}

int slice_of(int d, int blocks) { return (d + blocks * kUnit - 1) / (blocks * kUnit) * kUnit; }

template <int Blocks, class T>
bool step_one(Stream& stream, Step<T> s) {
  s.slice = slice_of(s.d, Blocks);
  const int bytes = OneMemory<T>::bytes(s, Blocks);
  if (s.slice * 4 > kOnePieces * kOneThreads || bytes > kMostShared) return false;
  launch_clusters(stream, mamba_step_one<T, Blocks>, s.count, Blocks, kOneThreads, bytes, s);
  return true;
}

template <int Rows, class S, class T>
void update(Stream& stream, const Step<T>& s) {
  const int blocks = (s.d + kUpdateChannels - 1) / kUpdateChannels;
  launch(stream.handle, mamba_step_update<T, S, Rows>,
         Grid{static_cast<unsigned>(blocks * ((s.count + Rows - 1) / Rows)), kUpdateThreads}, s);
}

template <int Blocks, class T>
bool project(Stream& stream, Step<T> s) {
  s.slice = slice_of(s.d, Blocks);
  const int bytes = ProjectMemory<T>::bytes(s, Blocks);
  if (bytes > kMostShared) return false;
  const int rows = s.count <= 16 ? 4 : s.count <= 32 ? 8 : 16;
  launch_clusters(stream, mamba_step_project<T, Blocks>, (s.count + rows - 1) / rows, Blocks,
                  kProjectThreads, bytes, s, rows);
  return true;
}

// A cluster's multiprocessors read all weights of their slices: up to here they are faster than
// the two kernels are started. Seven clusters of 16 blocks run at once, and more of 8.
template <class T>
bool step_few(Stream& stream, const Step<T>& s) {
  const int blocks = s.count <= 6 ? 16 : 8;
  if (s.count > 8 || slice_of(s.d, blocks) * (s.k + s.r) > kOneWeights) return false;
  return blocks == 16 ? step_one<16>(stream, s) : step_one<8>(stream, s);
}

template <class S, class T>
bool step_many(Stream& stream, const Step<T>& s) {
  if (!project<16>(stream, s)) return false;
  // Four rows of a block are faster where there are blocks enough and a row's states are few bytes.
  if (sizeof(S) == 2 && s.count > 128)
    update<4, S>(stream, s);
  else
    update<2, S>(stream, s);
  return true;
}

// Whether states can be accessed 16 bytes at a time.
bool wide_states(InOut state) {
  return state.dtype() == DType::f32 ? packs<float>(state, 4) : packs<uint16_t>(state, 8);
}

// Part of the columns of a matrix.
View columns(const View& x, int64_t begin, int64_t end, DType type) {
  View part = x;
  part.data = static_cast<char*>(x.data) + begin * size_of(type);
  part.shape[1] = end - begin;
  return part;
}
// The same as one group of coefficients a token.
View grouped(View x) {
  x.rank = 3, x.shape[2] = x.shape[1], x.shape[1] = 1;
  return x;
}

}  // namespace

bool mamba_step_in_order(Stream& stream, In xz, In conv_weight, Opt conv_bias, InOut conv_state,
                         In x_proj, In dt_weight, In dt_bias, In A, In D, InOut scan_state, In offsets,
                         In slots, Out y, Out u, Out dbc) {
  const int64_t b = xz.size(0), d = A.size(0), r = dt_weight.size(1), n = A.size(1);
  if (b == 0) return false;
  Fault* bad_offset =
      stream.fault("offsets[%lld] is %d, expected %lld: one token of each sequence");
  bool done = false, in_order = false;
  if (xz.dtype() != DType::f32 && xz.dtype() == x_proj.dtype())
    with_float(xz.dtype(), [&](auto type) {
      using T = decltype(type);
      if constexpr (sizeof(T) == 2) {
        const bool dense = conv_weight.stride() == kTaps && dt_weight.stride() == r &&
                           A.stride() == n;
        const bool wide = packs<T>(xz, 8) && packs<float>(conv_weight, 4) &&
                          packs<T>(conv_state, 8) && packs<T>(x_proj, 8) &&
                          packs<T>(dt_weight, 8) && packs<float>(A, 4) &&
                          wide_states(scan_state) && packs<T>(y, 8) && packs<T>(u, 8) &&
                          packs<T>(dbc, 8);
        const bool fits = starts_early() && n == kStates && conv_weight.size(1) == kTaps &&
                          d > 0 && d % 32 == 0 && d <= INT32_MAX / 256 && r > 0 &&
                          r % 8 == 0 && b <= INT32_MAX / 16;
        if (!fits || !dense || !wide) return;
        Step<T> s{};
        s.xz = xz.data<T>(), s.xz_stride = xz.stride();
        s.conv_weight = conv_weight.data<float>();
        if (conv_bias) s.conv_bias = conv_bias.data<float>();
        s.conv_state = conv_state.data<T>(), s.conv_state_stride = conv_state.stride();
        s.x_proj = x_proj.data<T>(), s.x_proj_stride = x_proj.stride();
        s.dt_weight = dt_weight.data<T>(), s.dt_bias = dt_bias.data<float>();
        s.A = A.data<float>(), s.D = D.data<float>();
        s.scan_state = scan_state.view->data, s.scan_state_stride = scan_state.stride();
        s.offsets = offsets.data<int32_t>(), s.slots = slots.data<int32_t>();
        s.y = y.data<T>(), s.y_stride = y.stride();
        s.u = u.data<T>(), s.u_stride = u.stride();
        s.dbc = dbc.data<T>(), s.dbc_stride = dbc.stride();
        s.state_bytes = static_cast<int>(size_of(scan_state.dtype()));
        s.pool = scan_state.size(0);
        s.count = static_cast<int>(b), s.d = static_cast<int>(d);
        s.r = static_cast<int>(r), s.k = static_cast<int>(x_proj.size(0));
        s.bad_offset = bad_offset;
        s.bad_slot = stream.fault("slots[%lld] is %d, expected less than %lld, the rows of state");
        done = in_order = step_many_sequences(stream, s, scan_state.dtype());
        if (done) return;
        with_float(scan_state.dtype(), [&](auto state) {
          using S = decltype(state);
          if constexpr (sizeof(S) == 4) done = step_few(stream, s);
          done = done || (in_order = step_many<S>(stream, s));
        });
      }
    });
  if (done) return in_order;

  check<<<1, 128, 0, stream.handle>>>(offsets.data<int32_t>(), b, bad_offset);
  // delta lies where y will: the scan reads a token's before it writes there.
  const View x = columns(*xz.view, 0, d, xz.dtype()), z = columns(*xz.view, d, 2 * d, xz.dtype());
  const View rank = columns(*dbc.view, 0, r, xz.dtype());
  const View B = grouped(columns(*dbc.view, r, r + n, xz.dtype()));
  const View C = grouped(columns(*dbc.view, r + n, r + 2 * n, xz.dtype()));
  causal_conv1d(stream, In{&x}, conv_weight, conv_bias, offsets, Opt{slots.view},
                OptInOut{conv_state.view}, true, u);
  matmul(stream, In{u.view}, x_proj, Opt{}, dbc);
  matmul(stream, In{&rank}, dt_weight, Opt{}, y);
  selective_scan(stream, In{u.view}, In{y.view}, A, In{&B}, In{&C}, Opt{D.view}, Opt{&z},
                 Opt{dt_bias.view}, offsets, Opt{slots.view}, OptInOut{scan_state.view}, true, y);
  return false;
}

void mamba_step(Stream& stream, In xz, In conv_weight, Opt conv_bias, InOut conv_state, In x_proj,
                In dt_weight, In dt_bias, In A, In D, InOut scan_state, In offsets, In slots, Out y,
                Out u, Out dbc) {
  mamba_step_in_order(stream, xz, conv_weight, conv_bias, conv_state, x_proj, dt_weight, dt_bias, A, D,
                      scan_state, offsets, slots, y, u, dbc);
}
KERNEL(mamba_step)

}  // namespace ss::cuda
