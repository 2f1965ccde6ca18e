// What the parts of the stand-in share: the pretended devices, their memory, the counters and the log.
//
// The stand-in takes the place of CUDA's driver and runtime, cuBLAS, NCCL and NVML. Memory is reserved address space,
// small copies are made, kernels do nothing. All that a program does on the host is real; no computed number is.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <string>

namespace nullgpu {

// ---- The devices, as the environment describes them.
//   NULLGPU_DEVICES   how many (1)
//   NULLGPU_CC        compute capability (9.0)
//   NULLGPU_GIB       memory of each (139.8)
//   NULLGPU_NAME      what they are called (NVIDIA H200), see names.h
//   NULLGPU_SMS       multiprocessors of each (132)
//   NULLGPU_UNUSABLE  NVML lists them, but CUDA says that the driver is too old for it
//   NULLGPU_LOG       file for one line an event
constexpr int MOST_DEVICES = 64;
constexpr size_t CONTEXT_BYTES = 520ul << 20;  // what a context takes on a real device
constexpr size_t LARGEST_COPY = 4ul << 20;     // what is larger is not copied
constexpr int DRIVER_VERSION = 13000;

struct Capability {
  int major, minor;
};

long setting(const char* name, long otherwise);
int devices_there();    // whether or not this process may use them
int devices_visible();  // those that CUDA_VISIBLE_DEVICES leaves
Capability capability();
std::string device_name(int device);
size_t device_bytes();
int device_attribute(int attribute);  // by the number that runtime and driver share
size_t shared_memory_limit();         // bytes that one block may opt into
int current_device();
bool set_current_device(int device);

// ---- Counters of the whole process.
#define NULLGPU_COUNTERS(X)                                                                                       \
  X(launches) X(matmuls) X(stream_syncs) X(device_syncs) X(event_syncs) X(blocking_copies) X(copies_to_host)      \
  X(copies_to_device) X(pageable_copies) X(copies_on_device) X(memsets) X(mallocs) X(frees) X(pinned_allocations) \
  X(refused_allocations) X(refused_launches) X(collectives)

struct Counters {
#define DECLARE(name) std::atomic<long> name{0};
  NULLGPU_COUNTERS(DECLARE)
#undef DECLARE
};
extern Counters counters;

bool is_logging();
void log_event(const char* format, ...) __attribute__((format(printf, 1, 2)));

// ---- Memory.
enum class Place { host = 0, pinned = 1, device = 2, managed = 3 };  // as in cudaMemoryType

struct Range {
  size_t bytes;
  Place place;
  int device;
};

const Range* range_of(const void* address);  // null where it is ordinary memory of the host
void* reserve(size_t bytes, Place place);    // null where a device has not so much left
void release(void* address);
void adopt_pinned(void* address, size_t bytes);
void forget_pinned(void* address);
size_t device_bytes_free(int device);
void copy_bytes(void* to, const void* from, size_t bytes, bool blocking);

// Kernels write nothing, so memory of a device holds what lay there before. Only what the host wrote, with no kernel
// launched since, is what a program would read: all else comes back to the host as zeros, never as numbers by chance.
void note_written(const void* address, size_t bytes);
bool is_written(const void* address, size_t bytes);

// ---- Kernels.
struct Shape {
  unsigned x, y, z;
};
void name_kernel(const void* kernel, const std::string& name);
const char* kernel_name(const void* kernel);
bool launch(const void* kernel, Shape grid, Shape block, size_t shared_bytes);  // false: no device would take it

}  // namespace nullgpu
