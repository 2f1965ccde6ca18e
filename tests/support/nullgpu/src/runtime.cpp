// CUDA's runtime: devices, memory, streams, events, launches.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "stand_in.h"

// The headers rename these to newer entry points, the libraries call them by their own names.
#undef cudaGetDeviceProperties
#undef cudaStreamGetCaptureInfo

using namespace nullgpu;

namespace {

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t answer(cudaError_t error) {
  if (error) last_error = error;
  return error;
}

cudaError_t allocated(void** address, size_t bytes, Place place) {
  *address = reserve(bytes, place);
  return answer(*address ? cudaSuccess : cudaErrorMemoryAllocation);
}

template <typename Handle>
cudaError_t new_handle(Handle* handle) {
  *handle = static_cast<Handle>(calloc(1, 64));
  return cudaSuccess;
}

Shape shape_of(dim3 size) { return {size.x, size.y, size.z}; }

cudaError_t launched(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  return answer(launch(kernel, shape_of(grid), shape_of(block), shared_bytes) ? cudaSuccess
                                                                             : cudaErrorInvalidConfiguration);
}

struct PendingLaunch {
  dim3 grid, block;
  size_t shared_bytes;
  void* stream;
};
thread_local std::vector<PendingLaunch> pending;

int answers_zero() { return 0; }

}  // namespace

extern "C" {

// ---- Devices

cudaError_t cudaGetDeviceCount(int* count) {
  bool unusable = setting("NULLGPU_UNUSABLE", 0);
  *count = unusable ? 0 : devices_visible();
  return answer(unusable ? cudaErrorInsufficientDriver : *count ? cudaSuccess : cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return answer(set_current_device(device) ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaInitDevice(int, unsigned, unsigned) { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = device_attribute(attribute);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  if (device < 0 || device >= devices_visible()) return answer(cudaErrorInvalidDevice);
  memset(found, 0, sizeof *found);
  snprintf(found->name, sizeof found->name, "%s", device_name(device).c_str());
  memset(found->uuid.bytes, device + 1, sizeof found->uuid.bytes);
  found->pciBusID = device + 1;
  found->totalGlobalMem = device_bytes();
  found->major = capability().major;
  found->minor = capability().minor;
  found->warpSize = device_attribute(10);
  found->memPitch = device_attribute(11);
  found->maxThreadsPerBlock = device_attribute(1);
  for (int i = 0; i < 3; i++) {
    found->maxThreadsDim[i] = device_attribute(2 + i);
    found->maxGridSize[i] = device_attribute(5 + i);
  }
  found->sharedMemPerBlock = device_attribute(8);
  found->sharedMemPerBlockOptin = device_attribute(97);
  found->sharedMemPerMultiprocessor = device_attribute(81);
  found->reservedSharedMemPerBlock = device_attribute(111);
  found->totalConstMem = device_attribute(9);
  found->regsPerBlock = device_attribute(12);
  found->regsPerMultiprocessor = device_attribute(82);
  found->textureAlignment = device_attribute(14);
  found->multiProcessorCount = device_attribute(16);
  found->maxThreadsPerMultiProcessor = device_attribute(39);
  found->maxBlocksPerMultiProcessor = device_attribute(106);
  found->asyncEngineCount = device_attribute(40);
  found->memoryBusWidth = device_attribute(37);
  found->l2CacheSize = device_attribute(38);
  found->clusterLaunch = device_attribute(120);
  found->concurrentKernels = found->ECCEnabled = found->unifiedAddressing = found->managedMemory = 1;
  found->streamPrioritiesSupported = found->cooperativeLaunch = found->hostRegisterSupported = 1;
  found->memoryPoolsSupported = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  snprintf(text, length, "0000:%02x:00.0", device + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  counters.device_syncs++;
  log_event("wait for device");
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = DRIVER_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = DRIVER_VERSION;
  return cudaSuccess;
}

// ---- Errors

cudaError_t cudaGetLastError() {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    default: return "error of the stand-in";
  }
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    default: return "cudaErrorUnknown";
  }
}

// ---- Memory

cudaError_t cudaMalloc(void** address, size_t bytes) {
  cudaError_t error = allocated(address, bytes, Place::device);
  if (!error) counters.mallocs++;
  if (!error) log_event("malloc %zu on device %d", bytes, current_device());
  return error;
}

cudaError_t cudaMallocAsync(void** address, size_t bytes, cudaStream_t) { return cudaMalloc(address, bytes); }

cudaError_t cudaMallocManaged(void** address, size_t bytes, unsigned) { return allocated(address, bytes, Place::managed); }

cudaError_t cudaFree(void* address) {
  if (address) counters.frees++;
  release(address);
  return cudaSuccess;
}

cudaError_t cudaFreeAsync(void* address, cudaStream_t) { return cudaFree(address); }

cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  counters.pinned_allocations++;
  log_event("pinned memory %zu", bytes);
  return allocated(address, bytes, Place::pinned);
}

cudaError_t cudaMallocHost(void** address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }

cudaError_t cudaFreeHost(void* address) {
  release(address);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  adopt_pinned(address, bytes);
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* address) {
  forget_pinned(address);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = device_bytes_free(current_device());
  *total = device_bytes();
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  const Range* range = range_of(address);
  memset(found, 0, sizeof *found);
  found->type = static_cast<cudaMemoryType>(range ? static_cast<int>(range->place) : 0);
  found->device = range ? range->device : cudaInvalidDeviceId;
  found->hostPointer = const_cast<void*>(address);
  found->devicePointer = range ? const_cast<void*>(address) : nullptr;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  copy_bytes(to, from, bytes, true);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  copy_bytes(to, from, bytes, false);
  return cudaSuccess;
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
  copy_bytes(to, from, bytes, false);
  return cudaSuccess;
}

cudaError_t cudaMemset(void* address, int value, size_t bytes) {
  counters.memsets++;
  note_written(address, bytes);
  if (bytes <= LARGEST_COPY) memset(address, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(address, value, bytes);
}

cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static void* symbols = reserve(1 << 20, Place::device);
  *address = symbols;
  return cudaSuccess;
}

// ---- Streams and events: all work is done when it is asked for, so that there is nothing to wait for.

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return new_handle(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return new_handle(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return new_handle(stream); }
cudaError_t cudaEventCreate(cudaEvent_t* event) { return new_handle(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return new_handle(event); }

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  counters.stream_syncs++;
  log_event("wait for stream");
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t) {
  counters.event_syncs++;
  log_event("wait for event");
  return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 1.0f;
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
  function(data);
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned) {
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}

// ---- Kernels, as nvcc's code registers and launches them

void** __cudaRegisterFatBinary(void*) {
  static void* handle[4];
  return handle;
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* device, int, uint3*, uint3*, dim3*, dim3*, int*) {
  name_kernel(host, device);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st* stream) {
  pending.push_back({grid, block, shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  if (pending.empty()) return cudaErrorUnknown;
  PendingLaunch found = pending.back();
  pending.pop_back();
  *grid = found.grid;
  *block = found.block;
  *shared_bytes = found.shared_bytes;
  *static_cast<void**>(stream) = found.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t shared_bytes, cudaStream_t) {
  return launched(kernel, grid, block, shared_bytes);
}

cudaError_t cudaLaunchCooperativeKernel(const void* kernel, dim3 grid, dim3 block, void**, size_t shared_bytes,
                                        cudaStream_t) {
  return launched(kernel, grid, block, shared_bytes);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  return launched(kernel, config->gridDim, config->blockDim, config->dynamicSmemBytes);
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void**, size_t shared_bytes, cudaStream_t) {
  return launched((const void*)kernel, grid, block, shared_bytes);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value <= static_cast<int>(shared_memory_limit()))
    return cudaSuccess;
  counters.refused_launches++;
  log_event("kernel %s REFUSED %d bytes of shared memory", kernel_name(kernel), value);
  return answer(cudaErrorInvalidValue);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024;
  found->numRegs = 64;
  found->binaryVersion = found->ptxVersion = capability().major * 10 + capability().minor;
  found->maxDynamicSharedSizeBytes = 48 << 10;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = reinterpret_cast<void*>(answers_zero);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
}
