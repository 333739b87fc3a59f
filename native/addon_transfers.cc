// Reads, writes and stamps: queued work that a promise reports on the JavaScript thread.
#include <cstdlib>
#include <cstring>

#include "addon.h"

namespace ss {
namespace {

struct Transfer {  // a promise that the queue will keep
  Addon* addon;
  napi_deferred deferred = nullptr;
  napi_ref kept = nullptr;    // the ArrayBuffer read into or written from
  bool is_read = false;       // resolves with `kept`
  void* staged = nullptr;     // a copy of small writes, freed here; they have no promise
  Status status{};
  double value = 0;
};

void finished(void* context, const Status& status, double value) {
  auto* transfer = static_cast<Transfer*>(context);
  transfer->status = status;
  transfer->value = value;
  if (napi_call_threadsafe_function(transfer->addon->wake, transfer, napi_tsfn_nonblocking) == napi_ok)
    return;
  std::free(transfer->staged);  // the environment is being torn down: nobody will settle it
  delete transfer;
}
// Bytes of a tensor that is read or written: one piece.
int64_t bytes_of(Napi::Env env, const View& view) {
  int64_t row = 1;
  for (int i = 1; i < view.rank; i++) row *= view.shape[i];
  if (view.shape[0] > 1 && row > 0 && view.stride != row)
    throw Napi::TypeError::New(env, "rows are strided, expected a dense tensor");
  return view.shape[0] * row * size_of(view.dtype);
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

}  // namespace

void open_transfers(Napi::Env env, Addon* addon) {
  napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "selective-scan"), 0,
                                  1, nullptr, nullptr, nullptr, settle, &addon->wake);
  napi_unref_threadsafe_function(env, addon->wake);
}

// read(tensor): Promise<ArrayBuffer>; the tensor is dense.
Napi::Value read(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Handle& from = tensor(env, info[0]);
  const size_t bytes = static_cast<size_t>(bytes_of(env, from.view));
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
  const int64_t room = bytes_of(env, to.view);
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

Napi::Value fft(const Napi::CallbackInfo& info) {
  char text[1024] = {};
  auto out = Napi::Object::New(info.Env());
  out["found"] = device(info.Env(), info[0])->backend->find_fft(text, sizeof text);
  out["text"] = text;
  return out;
}

Napi::Value stamp(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto* transfer = new Transfer{.addon = &addon_of(env)};
  napi_value promise;
  napi_create_promise(env, &transfer->deferred, &promise);
  start(env, transfer, device(env, info[0])->backend->stamp({finished, transfer}));
  return {env, promise};
}

}  // namespace ss
