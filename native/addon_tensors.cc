// Tensors' memory and handles, for addon.cc.
#include <algorithm>

#include "addon.h"

namespace ss {
namespace {

int64_t weight_of(const Storage& storage) {
  return static_cast<int64_t>(storage.bytes) / storage.device->lightness;
}

}  // namespace

void let_go(Napi::Env env, std::shared_ptr<Storage>& storage) {
  const int64_t bytes = storage.use_count() == 1 ? weight_of(*storage) : 0;
  storage.reset();
  if (bytes) Napi::MemoryManagement::AdjustExternalMemory(env, -bytes);
}

namespace {

void let_go(Napi::Env env, Handle* handle) {
  if (!handle->storage) return;
  handle->storage->device->tensors--;
  let_go(env, handle->storage);
}
// A released handle that is to be used again, or null. Making one costs more than most calls, and the
// garbage collector as much again.
Handle* spent_handle(Napi::Env env, napi_value value) {
  Handle* handle = unwrap<Handle>(env, value);
  if (handle && handle->storage) throw Napi::TypeError::New(env, "not a released tensor handle");
  return handle;
}
// `spent` is what the caller gave, `again` what is in it.
Napi::Value wrap(Napi::Env env, std::shared_ptr<Storage> storage, const View& view, Napi::Value spent,
                 Handle* again) {
  storage->device->tensors++;
  if (again) {
    again->view = view;
    again->storage = std::move(storage);
    return spent;
  }
  auto* handle = new Handle{.view = view, .storage = std::move(storage)};
  return Napi::External<Handle>::New(env, handle, [](Napi::Env env, Handle* h) {
    let_go(env, h);
    delete h;
  });
}

std::vector<int64_t> shape_of(const Napi::Value& value) {
  const auto array = value.As<Napi::Array>();
  std::vector<int64_t> shape(std::min<size_t>(array.Length(), kMaxRank + 1));
  for (uint32_t i = 0; i < shape.size(); i++)
    shape[i] = array.Get(i).As<Napi::Number>().Int64Value();
  return shape;
}
DType dtype_of(Napi::Env env, const Napi::Value& value) {
  const int32_t code = value.As<Napi::Number>().Int32Value();
  if (code < 0 || code > static_cast<int32_t>(DType::i32))
    throw Napi::TypeError::New(env, "not a dtype");
  return static_cast<DType>(code);
}

}  // namespace

// alloc(device, dtype, shape, spent?)
Napi::Value alloc(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto& on = device(env, info[0]);
  Handle* again = spent_handle(env, info[3]);
  const DType dtype = dtype_of(env, info[1]);
  const auto shape = shape_of(info[2]);
  const int64_t count = elements(shape);
  if (count < 0) throw Napi::RangeError::New(env, "the shape has a negative size, or is too large");
  const size_t bytes = static_cast<size_t>(count * size_of(dtype));
  void* data = nullptr;
  check(env, on->backend->alloc(bytes, &data));
  auto storage = std::make_shared<Storage>(on, data, bytes);
  View view;
  const int64_t stride = shape.empty() || shape[0] == 0 ? 0 : count / shape[0];
  if (const char* wrong = make_view(*storage, dtype, shape, 0, stride, view))
    throw Napi::RangeError::New(env, wrong);
  Napi::MemoryManagement::AdjustExternalMemory(env, weight_of(*storage));
  return wrap(env, std::move(storage), view, info[3], again);
}

// view(tensor, dtype, offset, shape, stride, spent?): offset and stride in elements of dtype, which has the
// size of the tensor's own, from the tensor's start.
Napi::Value view(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Handle& of = tensor(env, info[0]);
  Handle* again = spent_handle(env, info[5]);
  const DType dtype = dtype_of(env, info[1]);
  if (size_of(dtype) != size_of(of.view.dtype))
    throw Napi::TypeError::New(env, "not a dtype of the same size");
  const int64_t begin = static_cast<char*>(of.view.data) - static_cast<char*>(of.storage->data);
  View made;
  if (const char* wrong = make_view(
          *of.storage, dtype, shape_of(info[3]),
          begin / size_of(dtype) + info[2].As<Napi::Number>().Int64Value(),
          info[4].As<Napi::Number>().Int64Value(), made))
    throw Napi::RangeError::New(env, wrong);
  return wrap(env, of.storage, made, info[5], again);
}

Napi::Value release(const Napi::CallbackInfo& info) {
  if (Handle* handle = unwrap<Handle>(info.Env(), info[0])) let_go(info.Env(), handle);
  return info.Env().Undefined();
}

}  // namespace ss
