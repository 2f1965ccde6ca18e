// NVML: how Ray, torch and nvidia-ml-py see the pretended devices. A library of its own, as the real one is.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "names.h"

namespace {

constexpr int SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3;
constexpr unsigned long long IN_USE = 1ull << 30;

unsigned devices() {
  const char* value = getenv("NULLGPU_DEVICES");
  return value && *value ? atoi(value) : 1;
}

unsigned long long total_bytes() {
  const char* value = getenv("NULLGPU_GIB");
  return (value && *value ? atof(value) : 139.8) * (1ull << 30);
}

void* handle_of(unsigned index) { return reinterpret_cast<void*>(static_cast<uintptr_t>(index + 1)); }

unsigned index_of(void* device) { return static_cast<unsigned>(reinterpret_cast<uintptr_t>(device)) - 1; }

template <typename Value>
int give(Value* place, Value value) {
  *place = value;
  return SUCCESS;
}

}  // namespace

extern "C" {

int nvmlInit() { return SUCCESS; }
int nvmlInit_v2() { return SUCCESS; }
int nvmlInitWithFlags(unsigned) { return SUCCESS; }
int nvmlShutdown() { return SUCCESS; }
const char* nvmlErrorString(int) { return "error of the stand-in"; }

int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  snprintf(text, length, "580.159.04");
  return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion_v2(int* version) { return give(version, 13000); }

int nvmlDeviceGetCount_v2(unsigned* count) { return give(count, devices()); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = handle_of(index);
  return index < devices() ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* bus, void** device) {
  unsigned domain = 0, number = 1;
  sscanf(bus, "%x:%x", &domain, &number);
  *device = handle_of(number - 1);
  return SUCCESS;
}

int nvmlDeviceGetName(void* device, char* text, unsigned length) {
  snprintf(text, length, "%s", nullgpu::name_of(index_of(device)).c_str());
  return SUCCESS;
}

int nvmlDeviceGetUUID(void* device, char* text, unsigned length) {
  snprintf(text, length, "GPU-%08x-0000-0000-0000-000000000000", index_of(device));
  return SUCCESS;
}

struct Memory {
  unsigned long long total, free, used;
};

struct MemoryV2 {
  unsigned version;
  unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo(void*, Memory* found) {
  return give(found, Memory{total_bytes(), total_bytes() - IN_USE, IN_USE});
}

int nvmlDeviceGetMemoryInfo_v2(void*, MemoryV2* found) {
  return give(found, MemoryV2{found->version, total_bytes(), 0, total_bytes() - IN_USE, IN_USE});
}

struct Utilization {
  unsigned gpu, memory;
};

int nvmlDeviceGetUtilizationRates(void*, Utilization* found) { return give(found, Utilization{42, 7}); }

int nvmlDeviceGetComputeRunningProcesses(void*, unsigned* count, void*) { return give(count, 0u); }
int nvmlDeviceGetComputeRunningProcesses_v3(void*, unsigned* count, void*) { return give(count, 0u); }
int nvmlDeviceGetTotalEccErrors(void*, int, int, unsigned long long* errors) { return give(errors, 0ull); }
int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* reasons) { return give(reasons, 0ull); }
int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) { return give(celsius, 41u); }

struct Temperature {
  unsigned version;
  int sensor, celsius;
};

int nvmlDeviceGetTemperatureV(void*, Temperature* found) {
  found->celsius = 41;
  return SUCCESS;
}

int nvmlDeviceGetNvLinkRemoteDeviceType() { return NOT_SUPPORTED; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2() { return NOT_SUPPORTED; }
int nvmlDeviceGetGpuFabricInfoV() { return NOT_SUPPORTED; }
}
