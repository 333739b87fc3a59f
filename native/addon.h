// What the files of the addon share: the state of one environment, and how values become handles.
#pragma once
#include <napi.h>
#include <node_api.h>

#include <string>
#include <unordered_set>

#include "storage.h"

namespace ss {

// One per environment: the main thread's, and one for each worker.
struct Addon {
  napi_threadsafe_function wake = nullptr;  // carries finished transfers to the JavaScript thread
  int64_t pending = 0;                      // a process with none under way may exit
  std::unordered_set<std::shared_ptr<Device>> devices;
};

[[noreturn]] inline void fail(Napi::Env env, const std::string& text) {
  Napi::Error error = Napi::Error::New(env, text);
  error.Set("code", "SELECTIVE_SCAN_DEVICE");
  throw error;
}
inline void check(Napi::Env env, const Status& status) {
  if (status.code != Status::ok) fail(env, status.text);
}
inline Addon& addon_of(Napi::Env env) { return *env.GetInstanceData<Addon>(); }

template <class T>
T* unwrap(napi_env env, napi_value value) {
  void* data = nullptr;
  napi_valuetype type;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_external ||
      napi_get_value_external(env, value, &data) != napi_ok || !data ||
      static_cast<T*>(data)->magic != T::kMagic)
    return nullptr;
  return static_cast<T*>(data);
}
inline Handle& tensor(Napi::Env env, napi_value value) {
  Handle* handle = unwrap<Handle>(env, value);
  if (!handle || !handle->storage) throw Napi::TypeError::New(env, "not a live tensor handle");
  return *handle;
}
struct DeviceHandle {
  static constexpr uint64_t kMagic = 0x53535f4445564943;
  uint64_t magic = kMagic;
  std::shared_ptr<Device> device;
};
inline const std::shared_ptr<Device>& device(Napi::Env env, napi_value value) {
  auto* handle = unwrap<DeviceHandle>(env, value);
  if (!handle || !handle->device->backend) throw Napi::TypeError::New(env, "not an open device");
  return handle->device;
}

// addon_tensors.cc.
Napi::Value alloc(const Napi::CallbackInfo& info);
Napi::Value view(const Napi::CallbackInfo& info);
Napi::Value release(const Napi::CallbackInfo& info);
// Drops a reference to a tensor's memory; V8 is told when it was the last one.
void let_go(Napi::Env env, std::shared_ptr<Storage>& storage);

// addon_transfers.cc: what the queue reports back through a promise.
void open_transfers(Napi::Env env, Addon* addon);
Napi::Value read(const Napi::CallbackInfo& info);
Napi::Value write(const Napi::CallbackInfo& info);
Napi::Value stamp(const Napi::CallbackInfo& info);
Napi::Value fft(const Napi::CallbackInfo& info);  // which library of FFTs there is, or why none

}  // namespace ss
