// NCCL: collectives between processes of one machine, over shared memory.
//
// Small ones move and sum real bytes, large ones only meet. Ranks whose collectives do not match (another kind, another
// number of elements) get an error, where NCCL would hang or write over memory. A call returns once all ranks made it.
//
//   NULLGPU_ALONE     the other ranks of a group are pretended too: nobody is waited for
//   NULLGPU_PATIENCE  seconds until a rank that waits for others gives up (600)
#include "narrow_types.h"

#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "stand_in.h"

using namespace nullgpu;

namespace {

constexpr size_t SLOT_BYTES = 1 << 20;  // what a rank can hand over in one collective

struct Call {
  char kind[24];
  size_t count;
  int type, root;
  bool written;  // by the host, and not by a kernel

  bool matches(const Call& other) const {
    return !strcmp(kind, other.kind) && count == other.count && type == other.type && root == other.root;
  }
};

struct Slot {
  Call call;
  char bytes[SLOT_BYTES];
};

// What the ranks of a communicator share: a barrier, and a slot for each.
struct Room {
  std::atomic<int> arrived, round;
  Slot slots[1];
};

struct Communicator {
  int ranks, rank;
  std::string name;
  Room* room;  // null where this process is alone
  int splits = 0;
};

Communicator* of(ncclComm_t handle) { return reinterpret_cast<Communicator*>(handle); }

size_t type_bytes(ncclDataType_t type) {
  switch (type) {
    case ncclFloat16: case ncclBfloat16: return 2;
    case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
    case ncclInt64: case ncclUint64: case ncclFloat64: return 8;
    default: return 1;
  }
}

Room* open_room(const std::string& name, int ranks) {
  int file = shm_open(name.c_str(), O_RDWR | O_CREAT, 0600);
  size_t bytes = sizeof(Room) + ranks * sizeof(Slot);
  if (file < 0 || ftruncate(file, bytes)) return nullptr;
  void* room = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return room == MAP_FAILED ? nullptr : static_cast<Room*>(room);
}

// False when the others did not come in time.
bool meet(Communicator& group) {
  Room& room = *group.room;
  int round = room.round;
  if (++room.arrived == group.ranks) {
    room.arrived = 0;
    room.round++;
    return true;
  }
  auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(setting("NULLGPU_PATIENCE", 600));
  while (room.round == round) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return true;
}

ncclResult_t join(ncclComm_t* handle, const std::string& name, int ranks, int rank) {
  log_event("communicator: rank %d of %d on device %d", rank, ranks, current_device());
  bool alone = ranks == 1 || setting("NULLGPU_ALONE", 0);
  auto* group = new Communicator{ranks, rank, name, alone ? nullptr : open_room(name, ranks)};
  *handle = reinterpret_cast<ncclComm_t>(group);
  if (alone) return ncclSuccess;
  if (!group->room || !meet(*group)) return ncclSystemError;
  if (rank == 0) shm_unlink(name.c_str());  // all have it open
  return ncclSuccess;
}

template <typename Number>
void reduce_numbers(Communicator& group, void* result, size_t first, size_t count, ncclRedOp_t op) {
  auto* out = static_cast<Number*>(result);
  for (int rank = 0; rank < group.ranks; rank++) {
    auto* values = reinterpret_cast<const Number*>(group.room->slots[rank].bytes) + first;
    for (size_t i = 0; i < count; i++) {
      if (rank == 0) out[i] = values[i];
      else if (op == ncclMax) out[i] = std::max(out[i], values[i]);
      else if (op == ncclMin) out[i] = std::min(out[i], values[i]);
      else if (op == ncclProd) out[i] = out[i] * values[i];
      else out[i] = out[i] + values[i];
    }
  }
  if (op == ncclAvg)
    for (size_t i = 0; i < count; i++) out[i] = out[i] / static_cast<Number>(group.ranks);
}

// 16-bit numbers come from kernels, which compute nothing: those of the first rank stand for the result.
void reduce(Communicator& group, void* result, size_t first, size_t count, ncclDataType_t type, ncclRedOp_t op) {
  switch (type) {
    case ncclInt8: return reduce_numbers<int8_t>(group, result, first, count, op);
    case ncclUint8: return reduce_numbers<uint8_t>(group, result, first, count, op);
    case ncclInt32: return reduce_numbers<int32_t>(group, result, first, count, op);
    case ncclUint32: return reduce_numbers<uint32_t>(group, result, first, count, op);
    case ncclInt64: return reduce_numbers<int64_t>(group, result, first, count, op);
    case ncclUint64: return reduce_numbers<uint64_t>(group, result, first, count, op);
    case ncclFloat32: return reduce_numbers<float>(group, result, first, count, op);
    case ncclFloat64: return reduce_numbers<double>(group, result, first, count, op);
    default: memcpy(result, group.room->slots[0].bytes + first * type_bytes(type), count * type_bytes(type));
  }
}

struct Result {
  void* address;
  size_t bytes;
};

// Hand over `bytes`, meet, take what `receive` takes from the slots, meet again before slots are written anew.
template <typename Receive>
ncclResult_t exchange(Communicator& group, Call call, const void* send, size_t bytes, Result result, Receive receive) {
  Slot* slots = group.room->slots;
  call.written = is_written(send, bytes);
  slots[group.rank].call = call;
  if (send && bytes <= SLOT_BYTES) memcpy(slots[group.rank].bytes, send, bytes);
  if (!meet(group)) return ncclRemoteError;
  bool matching = std::all_of(slots, slots + group.ranks, [&](const Slot& slot) { return call.matches(slot.call); });
  bool written = slots[call.root].call.written;
  if (written && result.address) note_written(result.address, result.bytes);
  if (matching && bytes <= SLOT_BYTES) receive(slots);
  if (!meet(group)) return ncclRemoteError;
  if (matching) return ncclSuccess;
  log_event("MISMATCH: rank %d called %s of %zu", group.rank, call.kind, call.count);
  fprintf(stderr, "nullgpu: rank %d called %s of %zu elements, which another rank did not\n", group.rank, call.kind,
          call.count);
  return ncclInvalidUsage;
}

Call counted(const char* kind, size_t count, ncclDataType_t type, int root = 0) {
  counters.collectives++;
  log_event("collective %s %zu of %zu bytes on device %d", kind, count, type_bytes(type), current_device());
  Call call{};
  snprintf(call.kind, sizeof call.kind, "%s", kind);
  call.count = count;
  call.type = type;
  call.root = root;
  return call;
}

// Alone: the other ranks' shares are what this one's is.
void take_own(void* to, const void* from, size_t bytes, int shares = 1) {
  bool written = is_written(from, bytes);
  if (bytes <= SLOT_BYTES)
    for (int share = 0; share < shares; share++) memmove(static_cast<char*>(to) + share * bytes, from, bytes);
  if (written) note_written(to, bytes * shares);
}

struct Member {
  int color, key, rank;
};

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = 23007;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclInvalidUsage ? "ranks called different collectives" : "error of the stand-in";
}

const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::random_device random;
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "/nullgpu-%08x%08x%08x", random(), random(), random());
  return ncclSuccess;
}

// ---- Communicators

ncclResult_t ncclCommInitRank(ncclComm_t* group, int ranks, ncclUniqueId id, int rank) {
  return join(group, id.internal, ranks, rank);
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* group, int ranks, ncclUniqueId id, int rank, ncclConfig_t*) {
  return join(group, id.internal, ranks, rank);
}

ncclResult_t ncclCommInitRankScalable(ncclComm_t* group, int ranks, int rank, int, ncclUniqueId* ids, ncclConfig_t*) {
  return join(group, ids[0].internal, ranks, rank);
}

ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t* part, ncclConfig_t*) {
  Communicator& group = *of(handle);
  if (!group.room) return join(part, group.name, group.ranks, group.rank);
  Member mine{color, key, group.rank};
  std::vector<Member> members;
  auto result = exchange(group, counted("split", 1, ncclInt8), &mine, sizeof mine, {}, [&](Slot* slots) {
    for (int rank = 0; rank < group.ranks; rank++) {
      Member member;
      memcpy(&member, slots[rank].bytes, sizeof member);
      if (member.color == color) members.push_back(member);
    }
  });
  *part = nullptr;
  int number = group.splits++;
  if (result != ncclSuccess || color == NCCL_SPLIT_NOCOLOR) return result;
  std::sort(members.begin(), members.end(),
            [](const Member& a, const Member& b) { return std::pair(a.key, a.rank) < std::pair(b.key, b.rank); });
  auto me = std::find_if(members.begin(), members.end(), [&](const Member& member) { return member.rank == group.rank; });
  std::string name = group.name + "-" + std::to_string(number) + "-" + std::to_string(color);
  return join(part, name, members.size(), me - members.begin());
}

ncclResult_t ncclCommCount(ncclComm_t group, int* ranks) {
  *ranks = of(group)->ranks;
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(ncclComm_t group, int* rank) {
  *rank = of(group)->rank;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  *error = ncclSuccess;
  return ncclSuccess;
}

// ---- Collectives

ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t handle, cudaStream_t) {
  Call call = counted(op == ncclSum ? "all_reduce sum" : "all_reduce", count, type);
  Communicator& group = *of(handle);
  if (!group.room) return take_own(receive, send, count * type_bytes(type)), ncclSuccess;
  size_t bytes = count * type_bytes(type);
  return exchange(group, call, send, bytes, {receive, bytes},
                  [&](Slot*) { reduce(group, receive, 0, count, type, op); });
}

ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t handle, cudaStream_t) {
  Call call = counted(op == ncclSum ? "reduce_scatter sum" : "reduce_scatter", count, type);
  Communicator& group = *of(handle);
  size_t bytes = count * type_bytes(type);
  const char* mine = static_cast<const char*>(send) + group.rank * bytes;
  if (!group.room) return take_own(receive, mine, bytes), ncclSuccess;
  return exchange(group, call, send, bytes * group.ranks, {receive, bytes},
                  [&](Slot*) { reduce(group, receive, group.rank * count, count, type, op); });
}

ncclResult_t ncclAllGather(const void* send, void* receive, size_t count, ncclDataType_t type, ncclComm_t handle,
                           cudaStream_t) {
  Call call = counted("all_gather", count, type);
  Communicator& group = *of(handle);
  size_t bytes = count * type_bytes(type);
  auto* all = static_cast<char*>(receive);
  if (!group.room) return take_own(receive, send, bytes, group.ranks), ncclSuccess;
  return exchange(group, call, send, bytes, {receive, bytes * group.ranks}, [&](Slot* slots) {
    for (int rank = 0; rank < group.ranks; rank++) memcpy(all + rank * bytes, slots[rank].bytes, bytes);
  });
}

ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t handle, cudaStream_t) {
  Call call = counted("broadcast", count, type, root);
  Communicator& group = *of(handle);
  size_t bytes = count * type_bytes(type);
  if (!group.room) return take_own(receive, send, bytes), ncclSuccess;
  return exchange(group, call, send, bytes, {receive, bytes}, [&](Slot* slots) { memcpy(receive, slots[root].bytes, bytes); });
}

ncclResult_t ncclBcast(void* buffer, size_t count, ncclDataType_t type, int root, ncclComm_t group, cudaStream_t stream) {
  return ncclBroadcast(buffer, buffer, count, type, root, group, stream);
}

ncclResult_t ncclReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t handle, cudaStream_t) {
  Call call = counted("reduce", count, type, root);
  Communicator& group = *of(handle);
  if (!group.room) return take_own(receive, send, count * type_bytes(type)), ncclSuccess;
  return exchange(group, call, send, count * type_bytes(type), {}, [&](Slot*) {
    if (group.rank == root) reduce(group, receive, 0, count, type, op);
  });
}

// Between two ranks nothing is moved: no strategy sends.
ncclResult_t ncclSend(const void*, size_t count, ncclDataType_t type, int peer, ncclComm_t, cudaStream_t) {
  counted("send", count, type, peer);
  return ncclSuccess;
}

ncclResult_t ncclRecv(void*, size_t count, ncclDataType_t type, int peer, ncclComm_t, cudaStream_t) {
  counted("receive", count, type, peer);
  return ncclSuccess;
}

// ---- Memory and scaled sums

ncclResult_t ncclMemAlloc(void** address, size_t bytes) {
  *address = reserve(bytes, nullgpu::Place::device);
  return *address ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclMemFree(void* address) {
  release(address);
  return ncclSuccess;
}

ncclResult_t ncclRedOpCreatePreMulSum(ncclRedOp_t* op, void*, ncclDataType_t, ncclScalarResidence_t, ncclComm_t) {
  *op = static_cast<ncclRedOp_t>(ncclNumOps);
  return ncclSuccess;
}

ncclResult_t ncclCommMemStats(ncclComm_t, ncclCommMemStat_t, uint64_t* bytes) {
  *bytes = 0;
  return ncclSuccess;
}
}
