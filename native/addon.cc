// What lib/native.ts calls: addon*.cc hold all of Node-API. The surface does not grow with the ops.
#include "addon.h"

#include <cstring>
#include <string>

#include "cpu/pool.h"
#include "modules.h"

namespace ss {
namespace {

// V8 collects garbage whenever 64 MiB more are held than after the last time: on the host that finds
// what was never disposed in time; of a card's memory one layer of a long prompt has ten times that.
constexpr int64_t kCardLightness = 16;

// ---- running -----------------------------------------------------------------------------------

napi_value refuse(napi_env env, const char* name, size_t index, const char* what) {
  const std::string text = std::string(name) + ": argument " + std::to_string(index) + " " + what;
  napi_throw_type_error(env, nullptr, text.c_str());
  return nullptr;
}

// run(device, kernel, ...arguments): the hot path, in C. Arguments stand in the kernel's order.
napi_value run(napi_env env, napi_callback_info info) {
  napi_value argv[2 + kMaxArgs];
  size_t argc = 2 + kMaxArgs;
  napi_get_cb_info(env, info, &argc, argv, nullptr, nullptr);
  auto* on = argc > 0 ? unwrap<DeviceHandle>(env, argv[0]) : nullptr;
  int64_t id = -1;
  if (!on || !on->device->backend || argc < 2 || napi_get_value_int64(env, argv[1], &id) != napi_ok ||
      id < 0 || id >= static_cast<int64_t>(on->device->kernels.size()))
    return refuse(env, "run", 0, "is not a device with such a kernel");
  const Kernel& kernel = *on->device->kernels[static_cast<size_t>(id)];
  const size_t count = std::strlen(kernel.signature);
  if (argc != count + 2) return refuse(env, kernel.name, argc - 2, "is one too many or too few");

  Arg args[kMaxArgs];
  for (size_t i = 0; i < count; i++) {
    const char code = kernel.signature[i];
    const napi_value value = argv[i + 2];
    Arg& arg = args[i];
    arg.present = true;
    if (code == 'f' || code == 'n' || code == 'b') {
      if (napi_get_value_double(env, value, &arg.number) != napi_ok)
        return refuse(env, kernel.name, i, "is not a number");
      continue;
    }
    if (code == 'q' || code == 'v') {
      napi_valuetype type;
      napi_typeof(env, value, &type);
      if (type == napi_undefined || type == napi_null) {
        arg.present = false;
        continue;
      }
    }
    const Handle* handle = unwrap<Handle>(env, value);
    if (!handle || !handle->storage) return refuse(env, kernel.name, i, "is not a live tensor");
    if (handle->storage->device != on->device)
      return refuse(env, kernel.name, i, "lives on another device");
    arg.view = handle->view;
    if (on->device->capturing && !handle->storage->in_graph)
      on->device->captured.push_back(handle->storage);
  }
  const Status status = on->device->backend->run(static_cast<int>(id), args, static_cast<int>(count));
  if (status.code != Status::ok) napi_throw_error(env, "SELECTIVE_SCAN_DEVICE", status.text);
  return nullptr;
}

Napi::Value begin_capture(const Napi::CallbackInfo& info) {
  const auto& on = device(info.Env(), info[0]);
  check(info.Env(), on->backend->begin_capture());
  on->capturing = true;
  return info.Env().Undefined();
}
void drop(Napi::Env env, GraphHandle* handle) {
  if (handle->graph && handle->device->backend) handle->device->backend->drop(handle->graph);
  handle->graph = nullptr;
  for (auto& storage : handle->uses) let_go(env, storage);
  handle->uses.clear();
}
Napi::Value end_capture(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto& on = device(env, info[0]);
  auto handle = std::make_unique<GraphHandle>();
  handle->device = on;
  handle->uses = std::move(on->captured);
  on->captured.clear();
  on->capturing = false;
  check(env, on->backend->end_capture(&handle->graph));
  return Napi::External<GraphHandle>::New(env, handle.release(), [](Napi::Env env, GraphHandle* h) {
    drop(env, h);
    delete h;
  });
}
Napi::Value replay(const Napi::CallbackInfo& info) {
  auto* handle = unwrap<GraphHandle>(info.Env(), info[0]);
  if (!handle || !handle->graph || !handle->device->backend)
    throw Napi::TypeError::New(info.Env(), "not a live graph handle");
  check(info.Env(), handle->device->backend->replay(handle->graph));
  return info.Env().Undefined();
}
Napi::Value drop_graph(const Napi::CallbackInfo& info) {
  if (auto* handle = unwrap<GraphHandle>(info.Env(), info[0])) drop(info.Env(), handle);
  return info.Env().Undefined();
}

// ---- devices -----------------------------------------------------------------------------------

// open(kind, index)
Napi::Value open(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string why;
  const std::string kind = info[0].As<Napi::String>();
  std::unique_ptr<Backend> backend(
      open_device(kind, info[1].As<Napi::Number>().Int32Value(), why));
  if (!backend) fail(env, why);
  auto opened = std::make_shared<Device>();
  if (kind != "cpu") opened->lightness = kCardLightness;
  opened->backend = std::move(backend);
  for (const Kernel* k = opened->backend->kernels(); k; k = k->next) opened->kernels.push_back(k);
  addon_of(env).devices.insert(opened);
  return Napi::External<DeviceHandle>::New(env, new DeviceHandle{.device = opened},
                                           [](Napi::Env, DeviceHandle* h) { delete h; });
}

Napi::Value describe(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto& on = device(env, info[0]);
  const DeviceInfo about = on->backend->info();
  auto kernels = Napi::Array::New(env);
  for (uint32_t i = 0; i < on->kernels.size(); i++) {
    auto kernel = Napi::Object::New(env);
    kernel["name"] = on->kernels[i]->name;
    kernel["signature"] = on->kernels[i]->signature;
    kernels[i] = kernel;
  }
  auto out = Napi::Object::New(env);
  out["name"] = about.name;
  out["detail"] = about.detail;
  out["memory"] = static_cast<double>(about.memory);
  out["units"] = about.units;
  out["blas"] = about.blas;
  out["kernels"] = kernels;
  return out;
}

Napi::Value usage(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto& on = device(env, info[0]);
  const MemoryUse use = on->backend->memory();
  auto out = Napi::Object::New(env);
  out["tensors"] = static_cast<double>(on->tensors);
  out["used"] = static_cast<double>(use.used);
  out["cached"] = static_cast<double>(use.cached);
  out["peak"] = static_cast<double>(use.peak);
  return out;
}
Napi::Value set_memory_limit(const Napi::CallbackInfo& info) {
  device(info.Env(), info[0])
      ->backend->set_memory_limit(info[1].As<Napi::Number>().Int64Value());
  return info.Env().Undefined();
}
Napi::Value trim(const Napi::CallbackInfo& info) {
  device(info.Env(), info[0])->backend->trim();
  return info.Env().Undefined();
}
Napi::Value threads(const Napi::CallbackInfo& info) {
  Pool& pool = Pool::instance();
  if (info.Length() > 0) pool.set_threads(info[0].As<Napi::Number>().Int32Value());
  return Napi::Number::New(info.Env(), pool.threads());
}

// Stops the queues before the environment goes; handles that are finalized later find no backend.
void tear_down(Addon* addon) {
  for (const auto& device : addon->devices) device->backend.reset();
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  stay_loaded();
  auto* addon = new Addon;
  env.SetInstanceData(addon);
  env.AddCleanupHook(tear_down, addon);
  open_transfers(env, addon);
  napi_value hot;
  napi_create_function(env, "run", NAPI_AUTO_LENGTH, run, nullptr, &hot);
  exports["run"] = hot;
  const auto add = [&](const char* name, Napi::Value (*fn)(const Napi::CallbackInfo&)) {
    exports[name] = Napi::Function::New(env, fn, name);
  };
  add("open", open);
  add("describe", describe);
  add("fft", fft);
  add("usage", usage);
  add("setMemoryLimit", set_memory_limit);
  add("trim", trim);
  add("threads", threads);
  add("alloc", alloc);
  add("view", view);
  add("release", release);
  add("read", read);
  add("write", write);
  add("stamp", stamp);
  add("beginCapture", begin_capture);
  add("endCapture", end_capture);
  add("replay", replay);
  add("drop", drop_graph);
  return exports;
}

}  // namespace
}  // namespace ss

using ss::init;
NODE_API_MODULE(selective_scan, init)
