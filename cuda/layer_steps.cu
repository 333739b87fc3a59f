// Which calls of mamba_layer_step and expert_layer_step the kernels of device/mamba_layers.cuh,
// device/cluster_layers.cuh, device/grid_layers.cuh and device/mixture_layers.cuh take, how many of them in one launch, and whether
// a step's end is part of it.
#include "layer_steps.h"

#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>

namespace ss::cuda {

MambaCall mamba_call(Opt x, In residual, In norm_weight, In in_proj, In conv_weight, Opt conv_bias,
                     InOut conv_state, In x_proj, In dt_weight, In dt_bias, In A, In D,
                     InOut scan_state, In out_proj, In offsets, In slots, float eps, Out y, Out sum,
                     Out normed, Out xz, Out u, Out dbc, Out gated) {
  return {{x, residual, norm_weight, eps, y, sum, normed},
          in_proj, conv_weight, conv_bias, conv_state, x_proj, dt_weight, dt_bias, A, D,
          scan_state, out_proj, offsets, slots, xz, u, dbc, gated};
}
ExpertCall expert_call(Opt x, In residual, In norm_weight, In router, Opt router_bias, In up,
                       Opt up_bias, In down, Opt down_bias, float eps, int64_t k, bool sigmoid,
                       bool normalize, int64_t kind, Out y, Out sum, Out normed,
                       Out logits, Out experts, Out weights, Out hidden) {
  return {{x, residual, norm_weight, eps, y, sum, normed},
          router, router_bias, up, up_bias, down, down_bias, k, kind, sigmoid, normalize,
          logits, experts, weights, hidden};
}

namespace {

constexpr int64_t kMostRows = 1 << 24;  // of a head

template <class R, class... P, size_t... I>
R read(const Arg* args, R (*call)(P...), std::index_sequence<I...>) {
  return call(Slot<P>::get(args[I])...);
}
template <class R, class... P>
R read(const Arg* args, R (*call)(P...)) {
  return read(args, call, std::index_sequence_for<P...>{});
}
// False if it is a call of another op.
bool read(const Following::Call& next, LayerCall& call) {
  if (std::strcmp(next.kernel->name, "mamba_layer_step") == 0)
    call = read(next.args, mamba_call);
  else if (std::strcmp(next.kernel->name, "expert_layer_step") == 0)
    call = read(next.args, expert_call);
  else
    return false;
  return true;
}
const LayerEnds& ends(const LayerCall& call) {
  return std::visit([](const LayerEnds& both) -> const LayerEnds& { return both; }, call);
}

// Rows that lie one after the other, from a multiple of 16 bytes on.
template <class P>
bool dense(P tensor) {
  if (!tensor.view) return true;  // left out
  int64_t row = 1;
  for (int i = 1; i < tensor.rank(); i++) row *= tensor.size(i);
  return reinterpret_cast<uintptr_t>(tensor.view->data) % 16 == 0 &&
         (tensor.rank() == 1 || tensor.size(0) <= 1 || tensor.stride() == row);
}
template <class... P>
bool all_dense(P... tensors) {
  return (dense(tensors) && ...);
}

bool several(const LayerEnds& c) { return c.residual.size(0) > 1; }

bool fits(const MambaCall& c) {
  const int64_t m = c.residual.size(1);
  const DType type = c.y.dtype();
  if (several(c) ? !steps_in_clusters(c) && !steps_in_grid(c) : c.scan_state.dtype() != DType::f32)
    return false;
  return c.in_proj.dtype() == type && c.A.size(0) == 2 * m &&
         c.A.size(1) == kLayerStates && c.dt_weight.size(1) == (m / 16 + 15) / 16 * 16 &&
         c.conv_weight.size(1) == kLayerTaps &&
         all_dense(c.in_proj, c.conv_weight, c.conv_bias, c.conv_state, c.x_proj, c.dt_weight,
                   c.dt_bias, c.A, c.D, c.scan_state, c.out_proj, c.xz, c.u, c.dbc, c.gated);
}
bool fits(const ExpertCall& c) {
  return !several(c) && c.k == 1 && c.router.size(0) <= kMostExperts && c.up.dtype() == c.y.dtype() &&
         all_dense(c.router, c.router_bias, c.up, c.up_bias, c.down, c.down_bias, c.logits, c.experts,
                   c.weights, c.hidden);
}
bool fits(const LayerCall& call) {
  const LayerEnds& c = ends(call);
  return c.residual.size(0) >= 1 && c.y.dtype() != DType::f32 &&
         all_dense(c.x, c.residual, c.norm_weight, c.y, c.sum, c.normed) &&
         std::visit([](const auto& own) { return fits(own); }, call);
}

bool apart(const View& a, const View& b) {
  const auto bytes = [](const View& v) {
    int64_t count = size_of(v.dtype);
    for (int i = 0; i < v.rank; i++) count *= v.shape[i];
    return count;
  };
  const char *p = static_cast<const char*>(a.data), *q = static_cast<const char*>(b.data);
  return p + bytes(a) <= q || q + bytes(b) <= p;
}
struct Written {
  Out tensor[7];
};
Written written(const MambaCall& c) { return {{c.y, c.sum, c.normed, c.xz, c.u, c.dbc, c.gated}}; }
Written written(const ExpertCall& c) {
  return {{c.y, c.sum, c.normed, c.logits, c.experts, c.weights, c.hidden}};
}
// Within a launch nothing orders what different layers write.
bool apart(const LayerCall& a, const LayerCall& b) {
  const auto of = [](const LayerCall& call) {
    return std::visit([](const auto& own) { return written(own); }, call);
  };
  const Written first = of(a), second = of(b);
  for (const Out& p : first.tensor)
    for (const Out& q : second.tensor)
      if (!apart(*p.view, *q.view)) return false;
  return true;
}

bool same(const View* a, const View* b) { return a && b && a->data == b->data; }

// The layers of a launch, as they are found.
struct Run {
  LayerCall calls[kMostLayers];
  int count = 0;
  const MambaCall* mamba = nullptr;  // the first of each kind
  const ExpertCall* experts = nullptr;

  // Whether `next` is the layer after these, of the same step and of a kind with them.
  bool joins(const LayerCall& next) const {
    if (!fits(next)) return false;
    const LayerEnds& b = ends(next);
    if (count > 0) {
      const LayerEnds& a = ends(calls[count - 1]);
      if (!same(a.y.view, b.x.view) || !same(a.sum.view, b.residual.view) || a.eps != b.eps ||
          a.y.dtype() != b.y.dtype() || a.residual.size(1) != b.residual.size(1))
        return false;
    }
    if (const auto* own = std::get_if<MambaCall>(&next); own && mamba)
      if (!same(own->offsets.view, mamba->offsets.view) || !same(own->slots.view, mamba->slots.view) ||
          own->scan_state.size(0) != mamba->scan_state.size(0) ||
          own->scan_state.dtype() != mamba->scan_state.dtype())
        return false;
    if (const auto* own = std::get_if<ExpertCall>(&next); own && experts && own->h() != experts->h())
      return false;
    const auto* own = std::get_if<MambaCall>(&next);
    if (own && several(*own) && steps_in_grid(*own)) return true;
    for (int i = 0; i < count; i++)
      if (!apart(calls[i], next)) return false;
    return true;
  }
  void add(const LayerCall& next) {
    LayerCall& own = calls[count++] = next;
    if (const auto* call = std::get_if<MambaCall>(&own); call && !mamba) mamba = call;
    if (const auto* call = std::get_if<ExpertCall>(&own); call && !experts) experts = call;
  }
};

template <class T, class P>
T* data_of(P tensor) {
  return tensor.view ? static_cast<T*>(tensor.view->data) : nullptr;
}

template <class T>
Layer<T> layer_of(const MambaCall& c) {
  Layer<T> l{};
  l.norm = c.norm_weight.data<float>();
  l.in_proj = c.in_proj.data<T>(), l.out_proj = c.out_proj.data<T>();
  l.conv_weight = c.conv_weight.data<float>(), l.conv_bias = data_of<const float>(c.conv_bias);
  l.conv_state = c.conv_state.data<T>();
  l.x_proj = c.x_proj.data<T>(), l.dt_weight = c.dt_weight.data<T>();
  l.dt_bias = c.dt_bias.data<float>(), l.A = c.A.data<float>(), l.D = c.D.data<float>();
  l.scan_state = c.scan_state.data<float>();
  l.sum = c.sum.data<float>();
  l.normed = c.normed.data<T>(), l.xz = c.xz.data<T>(), l.u = c.u.data<T>();
  l.dbc = c.dbc.data<T>(), l.gated = c.gated.data<T>(), l.y = c.y.data<T>();
  return l;
}
template <class T>
mixture::ExpertLayer<T> layer_of(const ExpertCall& c) {
  mixture::ExpertLayer<T> l{};
  l.norm = c.norm_weight.data<float>();
  l.router = c.router.data<float>(), l.router_bias = data_of<const float>(c.router_bias);
  l.up = c.up.data<T>(), l.up_bias = data_of<const float>(c.up_bias);
  l.down = c.down.data<T>(), l.down_bias = data_of<const float>(c.down_bias);
  l.sum = c.sum.data<float>(), l.logits = c.logits.data<float>();
  l.weight = c.weights.data<float>(), l.expert = c.experts.data<int32_t>();
  l.normed = c.normed.data<T>(), l.hidden = c.hidden.data<T>(), l.y = c.y.data<T>();
  l.e = static_cast<int>(c.router.size(0)), l.kind = static_cast<int>(c.kind);
  l.gated = c.up.size(1) == 2 * c.h(), l.sigmoid = c.sigmoid, l.normalize = c.normalize;
  return l;
}

// What both kernels are told.
template <class S>
S layers_of(Stream& stream, const Run& run) {
  S s{};
  const LayerEnds& first = ends(run.calls[0]);
  s.x = data_of<std::remove_pointer_t<decltype(s.x)>>(first.x);
  s.residual = first.residual.data<float>();
  s.eps = first.eps;
  if (run.mamba) {
    s.offsets = run.mamba->offsets.data<int32_t>(), s.slots = run.mamba->slots.data<int32_t>();
    s.pool = run.mamba->scan_state.size(0);
  }
  s.words = stream.exchange->words();
  s.bad_offset = stream.fault("offsets[%lld] is %d, expected %lld: one token of each sequence");
  s.bad_slot = stream.fault("slots[%lld] is %d, expected less than %lld, the rows of state");
  s.layers = run.count;
  return s;
}

// The calls of a recorded graph that end a step, if they are right behind its layers.
struct Ending {
  In norm;
  Opt norm_bias;
  float eps;
  Out sum, normed;
  In weight;
  Opt bias;
  Out logits;
  bool centred;
  int calls;
};
struct Normed {
  In x, residual, weight;
  float eps;
  Out y, sum;
};
struct Accumulated {
  In x;
  InOut sum;
};
struct Centred {
  In x;
  Opt weight, bias;
  float eps;
  Out y;
};
struct Multiplied {
  In x, weight;
  Opt bias;
  Out y;
};
Normed normed_call(In x, In residual, In weight, float eps, Out y, Out sum) {
  return {x, residual, weight, eps, y, sum};
}
Accumulated accumulate_call(In x, InOut sum) { return {x, sum}; }
Centred centred_call(In x, Opt weight, Opt bias, float eps, Out y) { return {x, weight, bias, eps, y}; }
Multiplied multiply_call(In x, In weight, Opt bias, Out y) { return {x, weight, bias, y}; }

std::optional<Ending> find_ending(const Following& following, const Run& run) {
  const LayerEnds& last = ends(run.calls[run.count - 1]);
  int next = run.count - 1;
  const auto is = [&](const char* name) {
    return next < following.count && std::strcmp(following.calls[next].kernel->name, name) == 0;
  };
  const auto args = [&] { return following.calls[next++].args; };
  Ending e{};
  if (is("add_rms_norm")) {
    const Normed c = read(args(), normed_call);
    if (!same(c.x.view, last.y.view) || !same(c.residual.view, last.sum.view)) return {};
    e.norm = c.weight, e.eps = c.eps, e.sum = c.sum, e.normed = c.y;
  } else if (is("accumulate")) {
    const Accumulated sum = read(args(), accumulate_call);
    if (!same(sum.x.view, last.y.view) || !same(sum.sum.view, last.sum.view) || !is("layer_norm")) return {};
    const Centred c = read(args(), centred_call);
    if (!same(c.x.view, sum.sum.view) || !c.weight) return {};
    e.norm = In{c.weight.view}, e.norm_bias = c.bias, e.eps = c.eps, e.centred = true;
    e.sum = Out{sum.sum.view}, e.normed = c.y;
  }
  if (!e.normed.view || !is("matmul")) return {};
  const Multiplied c = read(args(), multiply_call);
  const DType type = last.y.dtype();
  if (!same(c.x.view, e.normed.view) || c.x.size(0) != 1 || c.weight.dtype() != type ||
      e.normed.dtype() != type || c.y.dtype() != DType::f32 || c.weight.size(0) > kMostRows ||
      !all_dense(e.norm, e.norm_bias, e.sum, e.normed, c.weight, c.bias, c.y))
    return {};
  e.weight = c.weight, e.bias = c.bias, e.logits = c.y;
  // As with layers: nothing orders what different parts of a launch write. The sum in place is the last layer's.
  if (!apart(*e.normed.view, *c.y.view)) return {};
  for (int i = 0; i < run.count; i++)
    for (const Out& of : std::visit([](const auto& own) { return written(own); }, run.calls[i]).tensor)
      if (!apart(*of.view, *e.normed.view) || !apart(*of.view, *c.y.view) ||
          (!e.centred && !apart(*of.view, *e.sum.view)))
        return {};
  if (!apart(*e.sum.view, *e.normed.view) || !apart(*e.sum.view, *c.y.view)) return {};
  e.calls = next - (run.count - 1);
  return e;
}
template <class T>
Head<T> head_of(const Ending& e) {
  Head<T> head{};
  head.norm = e.norm.data<float>(), head.norm_bias = data_of<const float>(e.norm_bias);
  head.weight = e.weight.data<T>(), head.bias = data_of<const float>(e.bias);
  head.sum = e.sum.data<float>(), head.logits = e.logits.data<float>(), head.normed = e.normed.data<T>();
  head.rows = static_cast<int>(e.weight.size(0));
  head.eps = e.eps, head.centred = e.centred;
  return head;
}

template <class T>
bool launch_run(Stream& stream, const Run& run, const std::optional<Ending>& ending) {
  if (several(ends(run.calls[0]))) {
    const MambaCall* calls[kMostLayers];
    for (int i = 0; i < run.count; i++) calls[i] = &std::get<MambaCall>(run.calls[i]);
    return steps_in_grid(*calls[0]) ? launch_grid_layers(stream, calls, run.count)
                                    : launch_cluster_layers(stream, calls, run.count);
  }
  const int64_t m = ends(run.calls[0]).residual.size(1);
  if (!run.experts) {
    auto s = layers_of<Layers<T>>(stream, run);
    for (int i = 0; i < run.count; i++) s.layer[i] = layer_of<T>(std::get<MambaCall>(run.calls[i]));
    if (ending) s.head = head_of<T>(*ending);
    if (launch_mamba_layers(stream, m, s)) return true;
  }
  auto s = layers_of<mixture::Layers<T>>(stream, run);
  for (int i = 0; i < run.count; i++) {
    if (const auto* call = std::get_if<ExpertCall>(&run.calls[i]))
      s.layer[i].has_experts = true, s.layer[i].experts = layer_of<T>(*call);
    else
      s.layer[i].mamba = layer_of<T>(std::get<MambaCall>(run.calls[i]));
  }
  if (ending) s.head = head_of<T>(*ending);
  return launch_mixture_layers(stream, m, run.experts ? run.experts->h() : 0, s);
}

}  // namespace

bool step_layers(Stream& stream, const LayerCall& first) {
  Run run;
  const bool many = several(ends(first));
  if ((!many && !stream.exchange->words()) || !run.joins(first)) return false;
  run.add(first);
  const int most = many ? kMostManyLayers : kMostLayers;
  for (int i = 0; i < stream.following->count && run.count < most; i++) {
    LayerCall next = first;
    if (!read(stream.following->calls[i], next) || !run.joins(next)) break;
    run.add(next);
  }
  const std::optional<Ending> ending = find_ending(*stream.following, run);
  const bool done = ends(first).y.dtype() == DType::bf16 ? launch_run<__nv_bfloat16>(stream, run, ending)
                                                         : launch_run<__half>(stream, run, ending);
  if (done) stream.following->taken = run.count - 1 + (ending ? ending->calls : 0);
  return done;
}

}  // namespace ss::cuda
