// All of Node-API: what lib/native.ts calls. The surface does not grow with the ops.
#include <node_api.h>
#include <napi.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_set>

#include "cpu/pool.h"
#include "modules.h"
#include "storage.h"

namespace ss {
namespace {

// One per environment: the main thread's, and one for each worker.
struct Addon {
  napi_threadsafe_function wake = nullptr;  // carries finished transfers to the JavaScript thread
  int64_t pending = 0;                      // a process with none under way may exit
  std::unordered_set<std::shared_ptr<Device>> devices;
};

struct Transfer {  // a promise that the queue will keep
  Addon* addon;
  napi_deferred deferred = nullptr;
  napi_ref kept = nullptr;    // the ArrayBuffer read into or written from
  bool is_read = false;       // resolves with `kept`
  void* staged = nullptr;     // a copy of small writes, freed here; they have no promise
  Status status{};
  double value = 0;
};

[[noreturn]] void fail(Napi::Env env, const std::string& text) {
  Napi::Error error = Napi::Error::New(env, text);
  error.Set("code", "SELECTIVE_SCAN_DEVICE");
  throw error;
}
void check(Napi::Env env, const Status& status) {
  if (status.code != Status::ok) fail(env, status.text);
}
Addon& addon_of(Napi::Env env) { return *env.GetInstanceData<Addon>(); }

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
Handle& tensor(Napi::Env env, napi_value value) {
  Handle* handle = unwrap<Handle>(env, value);
  if (!handle || !handle->storage) throw Napi::TypeError::New(env, "not a live tensor handle");
  return *handle;
}
struct DeviceHandle {
  static constexpr uint64_t kMagic = 0x53535f4445564943;
  uint64_t magic = kMagic;
  std::shared_ptr<Device> device;
};
const std::shared_ptr<Device>& device(Napi::Env env, napi_value value) {
  auto* handle = unwrap<DeviceHandle>(env, value);
  if (!handle || !handle->device->backend) throw Napi::TypeError::New(env, "not an open device");
  return handle->device;
}

void let_go(Napi::Env env, Handle* handle) {
  if (!handle->storage) return;
  Device& device = *handle->storage->device;
  device.tensors--;
  const bool last = handle->storage.use_count() == 1;
  const int64_t bytes = static_cast<int64_t>(handle->storage->bytes);
  handle->storage.reset();
  if (last) Napi::MemoryManagement::AdjustExternalMemory(env, -bytes);
}
Napi::Value wrap(Napi::Env env, std::shared_ptr<Storage> storage, const View& view) {
  storage->device->tensors++;
  auto* handle = new Handle{.view = view, .storage = std::move(storage)};
  return Napi::External<Handle>::New(env, handle, [](Napi::Env env, Handle* h) {
    let_go(env, h);
    delete h;
  });
}

std::vector<int64_t> shape_of(Napi::Env env, const Napi::Value& value) {
  const auto array = value.As<Napi::Array>();
  std::vector<int64_t> shape;
  for (uint32_t i = 0; i < array.Length() && i <= kMaxRank; i++)
    shape.push_back(Napi::Value(env, array[i]).As<Napi::Number>().Int64Value());
  return shape;
}
DType dtype_of(Napi::Env env, const Napi::Value& value) {
  const int32_t code = value.As<Napi::Number>().Int32Value();
  if (code < 0 || code > static_cast<int32_t>(DType::i32))
    throw Napi::TypeError::New(env, "not a dtype");
  return static_cast<DType>(code);
}

// ---- transfers ---------------------------------------------------------------------------------

void finished(void* context, const Status& status, double value) {
  auto* transfer = static_cast<Transfer*>(context);
  transfer->status = status;
  transfer->value = value;
  napi_call_threadsafe_function(transfer->addon->wake, transfer, napi_tsfn_nonblocking);
}
Napi::Value start(Napi::Env env, Transfer* transfer, const Status& queued) {
  if (transfer->addon->pending++ == 0) napi_ref_threadsafe_function(env, transfer->addon->wake);
  if (queued.code != Status::ok) finished(transfer, queued, 0);
  return env.Undefined();
}
void settle(napi_env raw, napi_value, void*, void* data) {
  std::unique_ptr<Transfer> transfer(static_cast<Transfer*>(data));
  std::free(transfer->staged);
  if (!raw) return;  // the environment is being torn down
  Napi::Env env(raw);
  Napi::HandleScope scope(env);
  if (--transfer->addon->pending == 0) napi_unref_threadsafe_function(env, transfer->addon->wake);
  napi_value kept = nullptr;
  if (transfer->kept) {
    napi_get_reference_value(env, transfer->kept, &kept);
    napi_delete_reference(env, transfer->kept);
  }
  if (!transfer->deferred) return;
  if (transfer->status.code != Status::ok) {
    Napi::Error error = Napi::Error::New(env, transfer->status.text);
    error.Set("code", "SELECTIVE_SCAN_DEVICE");
    napi_reject_deferred(env, transfer->deferred, error.Value());
  } else {
    napi_value number = Napi::Number::New(env, transfer->value);
    napi_resolve_deferred(env, transfer->deferred, transfer->is_read ? kept : number);
  }
}

// read(tensor): Promise<ArrayBuffer>; the tensor is dense.
Napi::Value read(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle& from = tensor(env, info[0]);
  int64_t count = from.view.shape[0];
  for (int i = 1; i < from.view.rank; i++) count *= from.view.shape[i];
  const size_t bytes = static_cast<size_t>(count * size_of(from.view.dtype));
  auto buffer = Napi::ArrayBuffer::New(env, bytes);
  auto* transfer = new Transfer{.addon = &addon_of(env), .is_read = true};
  napi_value promise;
  napi_create_promise(env, &transfer->deferred, &promise);
  napi_create_reference(env, buffer, 1, &transfer->kept);
  start(env, transfer,
        from.storage->device->backend->read(buffer.Data(), from.view.data, bytes,
                                            {finished, transfer}));
  return {env, promise};
}

// write(tensor, byteOffset, bytes, copy): with `copy` the bytes are taken at once; otherwise they
// must stay as they are until the promise resolves.
Napi::Value write(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle& to = tensor(env, info[0]);
  const int64_t offset = info[1].As<Napi::Number>().Int64Value();
  const auto source = info[2].As<Napi::Uint8Array>();
  int64_t room = to.view.shape[0];
  for (int i = 1; i < to.view.rank; i++) room *= to.view.shape[i];
  room *= size_of(to.view.dtype);
  const size_t bytes = source.ByteLength();
  if (offset < 0 || offset > room || static_cast<int64_t>(bytes) > room - offset)
    throw Napi::RangeError::New(env, "more bytes than the tensor holds");
  Backend& backend = *to.storage->device->backend;
  char* target = static_cast<char*>(to.view.data) + offset;
  auto* transfer = new Transfer{.addon = &addon_of(env)};
  if (info[3].ToBoolean()) {
    transfer->staged = std::malloc(bytes ? bytes : 1);
    if (!transfer->staged) fail(env, "write: out of memory");
    std::memcpy(transfer->staged, source.Data(), bytes);
    const Status queued = backend.write(target, transfer->staged, bytes, {finished, transfer});
    start(env, transfer, queued);
    check(env, queued);
    return env.Undefined();
  }
  napi_value promise;
  napi_create_promise(env, &transfer->deferred, &promise);
  napi_create_reference(env, source, 1, &transfer->kept);
  start(env, transfer, backend.write(target, source.Data(), bytes, {finished, transfer}));
  return {env, promise};
}

Napi::Value stamp(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto* transfer = new Transfer{.addon = &addon_of(env)};
  napi_value promise;
  napi_create_promise(env, &transfer->deferred, &promise);
  start(env, transfer, device(env, info[0])->backend->stamp({finished, transfer}));
  return {env, promise};
}

// ---- tensors -----------------------------------------------------------------------------------

// alloc(device, dtype, shape)
Napi::Value alloc(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto& on = device(env, info[0]);
  const DType dtype = dtype_of(env, info[1]);
  const auto shape = shape_of(env, info[2]);
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
  Napi::MemoryManagement::AdjustExternalMemory(env, static_cast<int64_t>(bytes));
  return wrap(env, std::move(storage), view);
}

// view(tensor, offset, shape, stride): offset and stride in elements, from the tensor's start.
Napi::Value view(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Handle& of = tensor(env, info[0]);
  const int64_t begin = static_cast<char*>(of.view.data) - static_cast<char*>(of.storage->data);
  View made;
  if (const char* wrong = make_view(
          *of.storage, of.view.dtype, shape_of(env, info[2]),
          begin / size_of(of.view.dtype) + info[1].As<Napi::Number>().Int64Value(),
          info[3].As<Napi::Number>().Int64Value(), made))
    throw Napi::RangeError::New(env, wrong);
  return wrap(env, of.storage, made);
}

Napi::Value release(const Napi::CallbackInfo& info) {
  if (Handle* handle = unwrap<Handle>(info.Env(), info[0])) let_go(info.Env(), handle);
  return info.Env().Undefined();
}

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
void drop(GraphHandle* handle) {
  if (handle->graph && handle->device->backend) handle->device->backend->drop(handle->graph);
  handle->graph = nullptr;
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
  return Napi::External<GraphHandle>::New(env, handle.release(), [](Napi::Env, GraphHandle* h) {
    drop(h);
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
  if (auto* handle = unwrap<GraphHandle>(info.Env(), info[0])) drop(handle);
  return info.Env().Undefined();
}

// ---- devices -----------------------------------------------------------------------------------

// open(kind, index)
Napi::Value open(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string why;
  std::unique_ptr<Backend> backend(open_device(
      info[0].As<Napi::String>(), info[1].As<Napi::Number>().Int32Value(), why));
  if (!backend) fail(env, why);
  auto opened = std::make_shared<Device>();
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
  auto* addon = new Addon;
  env.SetInstanceData(addon);
  env.AddCleanupHook(tear_down, addon);
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "selective-scan"), 0,
                                  1, nullptr, nullptr, nullptr, settle, &addon->wake);
  napi_unref_threadsafe_function(env, addon->wake);
  napi_value hot;
  napi_create_function(env, "run", NAPI_AUTO_LENGTH, run, nullptr, &hot);
  exports["run"] = hot;
  const auto add = [&](const char* name, Napi::Value (*fn)(const Napi::CallbackInfo&)) {
    exports[name] = Napi::Function::New(env, fn, name);
  };
  add("open", open);
  add("describe", describe);
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
