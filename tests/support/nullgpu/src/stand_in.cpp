#include "names.h"
#include "stand_in.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unordered_map>

namespace nullgpu {

namespace {

std::recursive_mutex guard;
using Locked = std::lock_guard<std::recursive_mutex>;

FILE* log_file() {
  static FILE* file = [] {
    const char* path = getenv("NULLGPU_LOG");
    return path && *path ? fopen(path, "w") : nullptr;
  }();
  return file;
}

// Leading entries of CUDA_VISIBLE_DEVICES that name a device; as CUDA does, the first that does not ends the list.
int count_visible(const std::string& list, int there) {
  int count = 0;
  for (size_t start = 0; start < list.size();) {
    size_t end = std::min(list.find(',', start), list.size());
    std::string entry = list.substr(start, end - start);
    int index = atoi(entry.c_str());
    if (entry.empty() || index < 0 || index >= there) break;
    count++;
    start = end + 1;
  }
  return count;
}

// Kept for the life of the process: libraries call into the stand-in while they are unloaded.
auto& ranges = *new std::map<uintptr_t, Range>;
auto& kernel_names = *new std::unordered_map<const void*, std::string>;
size_t used[MOST_DEVICES];
thread_local int current = 0;
auto& written = *new std::map<uintptr_t, size_t>;  // start and bytes
long written_before = 0;                           // so many kernels had been launched

long kernels() { return counters.launches + counters.matmuls; }

}  // namespace

Counters counters;

// ---- Devices

long setting(const char* name, long otherwise) {
  const char* value = getenv(name);
  return value && *value ? atol(value) : otherwise;
}

int devices_there() {
  static int count = setting("NULLGPU_DEVICES", 1);
  return count;
}

int devices_visible() {
  static int count = [] {
    const char* list = getenv("CUDA_VISIBLE_DEVICES");
    return list ? count_visible(list, devices_there()) : devices_there();
  }();
  return count;
}

Capability capability() {
  static Capability found = [] {
    const char* value = getenv("NULLGPU_CC");
    Capability parsed{9, 0};
    if (value) sscanf(value, "%d.%d", &parsed.major, &parsed.minor);
    return parsed;
  }();
  return found;
}

std::string device_name(int device) {
  const char* list = getenv("CUDA_VISIBLE_DEVICES");
  for (int i = 0; list && i < device; i++) {
    const char* comma = strchr(list, ',');
    list = comma ? comma + 1 : nullptr;
  }
  return name_of(list ? atoi(list) : device);
}

size_t device_bytes() {
  static size_t bytes = [] {
    const char* value = getenv("NULLGPU_GIB");
    return static_cast<size_t>((value && *value ? atof(value) : 139.8) * (1ul << 30));
  }();
  return bytes;
}

// CUDA programming guide, "Technical Specifications per Compute Capability".
size_t shared_memory_limit() {
  auto [major, minor] = capability();
  if (major == 9 || major == 10) return 227 << 10;
  if (major == 8 && (minor == 0 || minor == 7)) return 163 << 10;
  return major == 7 ? 64 << 10 : 99 << 10;
}

int device_attribute(int attribute) {
  switch (attribute) {
    case 1: case 2: case 3: return 1024;  // threads of a block, and its first two dimensions
    case 4: return 64;                    // third dimension of a block
    case 5: return 2147483647;            // first dimension of a grid
    case 6: case 7: return 65535;         // the other two
    case 8: return 48 << 10;              // shared memory of a block without opting in
    case 9: return 65536;                 // constant memory
    case 10: return 32;                   // threads of a warp
    case 11: return 2147483647;           // pitch
    case 12: case 82: return 65536;       // registers of a block, of a multiprocessor
    case 13: return 1980000;              // clock in kHz
    case 14: return 512;                  // alignment of textures
    case 16: return setting("NULLGPU_SMS", 132);
    case 19: case 31: case 32: case 41: return 1;  // host mapping, concurrent kernels, ECC, unified addresses
    case 36: return 3201000;                       // memory clock in kHz
    case 37: return 6144;                          // memory bus in bits
    case 38: return 50 << 20;                      // second-level cache
    case 39: return capability().major == 7 ? 1024 : 2048;  // threads of a multiprocessor
    case 40: return 3;                                      // copy engines
    case 75: return capability().major;
    case 76: return capability().minor;
    case 78: case 79: case 80: case 83: return 1;        // stream priorities, caching of globals and locals, managed memory
    case 81: return shared_memory_limit() + (1 << 10);   // shared memory of a multiprocessor
    case 89: case 95: case 115: case 121: return 1;      // concurrent managed access, cooperative launch, memory pools
    case 97: return shared_memory_limit();
    case 106: return 32;                                 // blocks of a multiprocessor
    case 111: return 1024;                               // shared memory that the system keeps
    case 120: return capability().major >= 9;            // clusters of blocks
    default: return 0;
  }
}

int current_device() { return current; }

bool set_current_device(int device) {
  if (device < 0 || device >= devices_visible()) return false;
  if (device != current) log_event("device %d", device);
  current = device;
  return true;
}

// ---- Log

bool is_logging() { return log_file() != nullptr; }

void log_event(const char* format, ...) {
  FILE* file = log_file();
  if (!file) return;
  Locked lock(guard);
  va_list values;
  va_start(values, format);
  vfprintf(file, format, values);
  va_end(values);
  fputc('\n', file);
  fflush(file);
}

// ---- Memory

const Range* range_of(const void* address) {
  Locked lock(guard);
  auto next = ranges.upper_bound(reinterpret_cast<uintptr_t>(address));
  if (next == ranges.begin()) return nullptr;
  auto& [start, range] = *std::prev(next);
  return reinterpret_cast<uintptr_t>(address) < start + range.bytes ? &range : nullptr;
}

void* reserve(size_t bytes, Place place) {
  Locked lock(guard);
  if (place == Place::device && bytes > device_bytes_free(current)) {
    counters.refused_allocations++;
    log_event("allocation refused: %zu bytes on device %d", bytes, current);
    return nullptr;
  }
  // Pages come into being when they are touched: a pretended terabyte costs nothing.
  void* address = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  ranges[reinterpret_cast<uintptr_t>(address)] = {bytes, place, current};
  if (place == Place::device) used[current] += bytes;
  return address;
}

void release(void* address) {
  Locked lock(guard);
  auto found = ranges.find(reinterpret_cast<uintptr_t>(address));
  if (found == ranges.end()) return;
  Range range = found->second;
  ranges.erase(found);
  munmap(address, std::max<size_t>(range.bytes, 1));
  if (range.place == Place::device) used[range.device] -= range.bytes;
}

void adopt_pinned(void* address, size_t bytes) {
  Locked lock(guard);
  ranges[reinterpret_cast<uintptr_t>(address)] = {bytes, Place::pinned, current};
}

void forget_pinned(void* address) {
  Locked lock(guard);
  ranges.erase(reinterpret_cast<uintptr_t>(address));
}

size_t device_bytes_free(int device) {
  size_t taken = used[device] + CONTEXT_BYTES;
  return taken < device_bytes() ? device_bytes() - taken : 0;
}

void copy_bytes(void* to, const void* from, size_t bytes, bool blocking) {
  const Range *target = range_of(to), *source = range_of(from);
  bool to_device = target && target->place == Place::device, from_device = source && source->place == Place::device;
  const char* how = blocking ? " blocking" : "";
  if (blocking) counters.blocking_copies++;
  if (to_device && !from_device) {
    counters.copies_to_device++;
    if (!source) counters.pageable_copies++;
    log_event("copy to device: %zu%s%s", bytes, source ? "" : " pageable", how);
  } else if (from_device && !to_device) {
    counters.copies_to_host++;
    log_event("copy to host: %zu%s%s", bytes, target ? "" : " pageable", how);
    if (bytes <= LARGEST_COPY && !is_written(from, bytes)) {
      memset(to, 0, bytes);
      return;
    }
  } else {
    counters.copies_on_device++;
    log_event("copy on device: %zu", bytes);
  }
  if (to_device && (!from_device || is_written(from, bytes))) note_written(to, bytes);
  if (bytes && bytes <= LARGEST_COPY) memmove(to, from, bytes);
}

void note_written(const void* address, size_t bytes) {
  Locked lock(guard);
  if (written_before != kernels()) written.clear();
  written_before = kernels();
  written[reinterpret_cast<uintptr_t>(address)] = bytes;
}

bool is_written(const void* address, size_t bytes) {
  Locked lock(guard);
  auto start = reinterpret_cast<uintptr_t>(address);
  auto next = written.upper_bound(start);
  if (written_before != kernels() || next == written.begin()) return false;
  auto& [first, length] = *std::prev(next);
  return start + bytes <= first + length;
}

// ---- Kernels

void name_kernel(const void* kernel, const std::string& name) {
  Locked lock(guard);
  kernel_names[kernel] = name;
}

const char* kernel_name(const void* kernel) {
  Locked lock(guard);
  auto found = kernel_names.find(kernel);
  return found == kernel_names.end() ? "?" : found->second.c_str();
}

bool launch(const void* kernel, Shape grid, Shape block, size_t shared_bytes) {
  counters.launches++;
  bool fits = size_t(block.x) * block.y * block.z <= 1024 && grid.x && grid.y && grid.z && grid.y <= 65535 &&
              grid.z <= 65535 && shared_bytes <= shared_memory_limit();
  if (!fits) counters.refused_launches++;
  if (is_logging())
    log_event("kernel %s grid %u,%u,%u block %u,%u,%u shared %zu%s", kernel_name(kernel), grid.x, grid.y, grid.z,
              block.x, block.y, block.z, shared_bytes, fits ? "" : " REFUSED");
  return fits;
}

}  // namespace nullgpu

// ---- What tests ask of the stand-in.
extern "C" {

const char* nullgpu_counter_names() {
#define NAME(name) #name " "
  return NULLGPU_COUNTERS(NAME);
#undef NAME
}

// Writes as many values as there are names.
void nullgpu_counters(long* values) {
#define WRITE(name) *values++ = nullgpu::counters.name;
  NULLGPU_COUNTERS(WRITE)
#undef WRITE
}

// A line in the log, for people and for tests that look at a part of it.
void nullgpu_mark(const char* text) { nullgpu::log_event("# %s", text); }
}
