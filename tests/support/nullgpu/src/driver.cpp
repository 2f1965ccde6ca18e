// CUDA's driver: what torch, Triton and compiled layers ask of it directly.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "stand_in.h"

using namespace nullgpu;

namespace {

int the_context;

CUresult new_module(CUmodule* module) {
  *module = static_cast<CUmodule>(calloc(1, 64));
  return CUDA_SUCCESS;
}

CUresult launched(CUfunction kernel, Shape grid, Shape block, size_t shared_bytes) {
  return launch(kernel, grid, block, shared_bytes) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) { return setting("NULLGPU_UNUSABLE", 0) ? CUDA_ERROR_SYSTEM_DRIVER_MISMATCH : CUDA_SUCCESS; }

CUresult cuDriverGetVersion(int* version) {
  *version = setting("NULLGPU_UNUSABLE", 0) ? 11000 : DRIVER_VERSION;
  return CUDA_SUCCESS;
}

// ---- Devices and contexts

CUresult cuDeviceGet(CUdevice* device, int index) {
  *device = index;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  *count = devices_visible();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char* text, int length, CUdevice device) {
  snprintf(text, length, "%s", device_name(device).c_str());
  return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
  *bytes = device_bytes();
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = device_attribute(attribute);
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = reinterpret_cast<CUcontext>(&the_context);
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current_device();
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t* value, CUlimit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return cuCtxGetCurrent(context); }

CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult, const char** text) {
  *text = "error of the stand-in";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult, const char** name) {
  *name = "CUDA_ERROR_UNKNOWN";
  return CUDA_SUCCESS;
}

// ---- Kernels that Triton made

CUresult cuModuleLoad(CUmodule* module, const char*) { return new_module(module); }
CUresult cuModuleLoadData(CUmodule* module, const void*) { return new_module(module); }
CUresult cuModuleLoadDataEx(CUmodule* module, const void*, unsigned, CUjit_option*, void**) { return new_module(module); }

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  char* kernel = strdup(name);  // an address of its own for each
  name_kernel(kernel, std::string("triton ") + name);
  *function = reinterpret_cast<CUfunction>(kernel);
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS                ? 64
           : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
                                                                  : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuLaunchKernel(CUfunction kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared_bytes, CUstream, void**, void**) {
  return launched(kernel, {gx, gy, gz}, {bx, by, bz}, shared_bytes);
}

CUresult cuLaunchCooperativeKernel(CUfunction kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                   unsigned bz, unsigned shared_bytes, CUstream, void**) {
  return launched(kernel, {gx, gy, gz}, {bx, by, bz}, shared_bytes);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction kernel, void**, void**) {
  return launched(kernel, {config->gridDimX, config->gridDimY, config->gridDimZ},
                  {config->blockDimX, config->blockDimY, config->blockDimZ}, config->sharedMemBytes);
}

CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}

CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  *clusters = 8;
  return CUDA_SUCCESS;
}

// Triton refuses arguments that this does not know as memory of a device.
CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    *static_cast<int*>(value) = 0;
    return CUDA_SUCCESS;
  }
  if (!range_of(reinterpret_cast<void*>(address))) return CUDA_ERROR_INVALID_VALUE;
  *static_cast<CUdeviceptr*>(value) = address;
  return CUDA_SUCCESS;
}
}
