// The entry points of CUDA's runtime: devices, memory, streams and events.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstring>

#include "device.hpp"
#include "python_call.hpp"

namespace cpu_device {
namespace {

// --- devices ------------------------------------------------------------------------------------------------

constexpr int cuda_version = 13000;

PyObject* ensure_context() { return none(); }

int get_device(SkipDispatch) { return 0; }

PyObject* set_device(int device, SkipDispatch) {
    return device == 0 ? none() : raise_runtime_error(invalid_device, "cudaErrorInvalidDevice: there is one device, 0");
}

int get_device_count(SkipDispatch) { return 1; }

int driver_version(SkipDispatch) { return cuda_version; }

int runtime_version(SkipDispatch) { return cuda_version; }

int cuda_major_version(SkipDispatch) { return cuda_version / 1000; }

// The limits that kernels are held to are those of compute capability 9.0, as far as CuPy asks for them.
int device_attribute(int attribute, int, SkipDispatch) {
    switch (attribute) {
        case 1:
            return 1024;  // MaxThreadsPerBlock
        case 2:
            return 1024;  // MaxBlockDimX
        case 3:
            return 1024;  // MaxBlockDimY
        case 4:
            return 64;  // MaxBlockDimZ
        case 5:
            return 2147483647;  // MaxGridDimX
        case 6:
            return 65535;  // MaxGridDimY
        case 7:
            return 65535;  // MaxGridDimZ
        case 8:
            return 49152;  // MaxSharedMemoryPerBlock
        case 10:
            return 32;  // WarpSize
        case 16:
            return 1;  // MultiProcessorCount: this processor
        case 39:
            return 1024;  // MaxThreadsPerMultiProcessor
        case 75:
            return 9;  // ComputeCapabilityMajor
        case 76:
            return 0;  // ComputeCapabilityMinor
        case 88:
            return 0;  // PageableMemoryAccess
        case 97:
            return 232448;  // MaxSharedMemoryPerBlockOptin
        case 115:
            return 0;  // MemoryPoolsSupported
        default:
            break;
    }
    raise_runtime_error(invalid_value, "cudaErrorInvalidValue: CuPy on CPU does not cover device attribute " +
                                           std::to_string(attribute));
    return -1;
}

PyObject* device_properties(int, SkipDispatch) { return PyDict_Copy(python.device_properties); }

PyObject* device_synchronize(SkipDispatch) {
    counters.synchronisations += 1;
    return none();
}

PyObject* memory_info(SkipDispatch) {
    long long page = sysconf(_SC_PAGESIZE);
    long long free_bytes = page * sysconf(_SC_AVPHYS_PAGES);
    long long total_bytes = page * sysconf(_SC_PHYS_PAGES);
    return Py_BuildValue("(LL)", free_bytes, total_bytes);
}

// --- memory -------------------------------------------------------------------------------------------------

intptr_t allocate(size_t size, MemoryKind kind) {
    intptr_t address = memory.allocate(size, kind);
    if (address == 0) {
        raise_runtime_error(out_of_memory,
                            "cudaErrorMemoryAllocation: no memory for " + std::to_string(size) + " bytes");
    }
    return address;
}

PyObject* release(intptr_t address) {
    if (memory.release(address)) {
        return none();
    }
    return raise_runtime_error(invalid_value, "cudaErrorInvalidValue: freed memory that is not allocated");
}

intptr_t malloc_device(size_t size, SkipDispatch) { return allocate(size, MemoryKind::device); }

intptr_t malloc_device_async(size_t size, intptr_t, SkipDispatch) { return allocate(size, MemoryKind::device); }

intptr_t malloc_host(size_t size, unsigned, SkipDispatch) { return allocate(size, MemoryKind::host); }

PyObject* free_memory(intptr_t address, SkipDispatch) { return release(address); }

PyObject* free_memory_async(intptr_t address, intptr_t, SkipDispatch) { return release(address); }

// The values of cudaMemcpyKind.
enum class Direction : int {
    host_to_host = 0,
    host_to_device = 1,
    device_to_host = 2,
    device_to_device = 3,
    by_address = 4
};

Direction direction_by_address(intptr_t to, intptr_t from) {
    bool to_device = memory.kind_of(to) == MemoryKind::device;
    bool from_device = memory.kind_of(from) == MemoryKind::device;
    if (to_device) {
        return from_device ? Direction::device_to_device : Direction::host_to_device;
    }
    return from_device ? Direction::device_to_host : Direction::host_to_host;
}

PyObject* copy(intptr_t to, intptr_t from, size_t size, int kind, bool host_waits) {
    Direction direction = static_cast<Direction>(kind);
    if (direction == Direction::by_address) {
        direction = direction_by_address(to, from);
    }
    bool to_device = direction == Direction::host_to_device || direction == Direction::device_to_device;
    bool from_device = direction == Direction::device_to_host || direction == Direction::device_to_device;
    bool valid = (!to_device || memory.is_device(to, size)) && (!from_device || memory.is_device(from, size));
    if (size > 0 && !valid) {
        return raise_runtime_error(invalid_value, "cudaErrorInvalidValue: a copy leaves its device memory");
    }
    std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size);
    if (direction == Direction::host_to_device) {
        counters.host_to_device.add(size);
    } else if (direction == Direction::device_to_host) {
        counters.device_to_host.add(size);
    } else if (direction == Direction::device_to_device) {
        counters.device_to_device.add(size);
    }
    // cudaMemcpy returns to the host when the copy is done, save between two places on the device.
    if (host_waits && direction != Direction::device_to_device) {
        counters.synchronisations += 1;
    }
    return none();
}

PyObject* memcpy_blocking(intptr_t to, intptr_t from, size_t size, int kind, SkipDispatch) {
    return copy(to, from, size, kind, true);
}

PyObject* memcpy_async(intptr_t to, intptr_t from, size_t size, int kind, intptr_t, SkipDispatch) {
    return copy(to, from, size, kind, false);
}

PyObject* fill(intptr_t address, int value, size_t size) {
    if (size > 0 && !memory.is_device(address, size)) {
        return raise_runtime_error(invalid_value, "cudaErrorInvalidValue: a memset leaves its device memory");
    }
    std::memset(reinterpret_cast<void*>(address), value, size);
    return none();
}

PyObject* memset_blocking(intptr_t address, int value, size_t size, SkipDispatch) { return fill(address, value, size); }

PyObject* memset_async(intptr_t address, int value, size_t size, intptr_t, SkipDispatch) {
    return fill(address, value, size);
}

PyObject* pointer_attributes(intptr_t address, SkipDispatch) {
    MemoryKind kind = memory.kind_of(address);
    intptr_t device_pointer = kind == MemoryKind::unregistered ? 0 : address;
    intptr_t host_pointer = kind == MemoryKind::device ? 0 : address;
    long long device = device_pointer;
    long long host = host_pointer;
    return PyObject_CallFunction(python.pointer_attributes, "iLLi", 0, device, host, static_cast<int>(kind));
}

int pointer_memory_type(intptr_t address, SkipDispatch) { return static_cast<int>(memory.kind_of(address)); }

// --- streams and events -------------------------------------------------------------------------------------

// An event knows when it was recorded, so that elapsed times are real: those of this CPU.
struct Event {
    bool is_recorded;
    std::chrono::steady_clock::time_point time;
};

struct Stream {
    unsigned flags;
};
constexpr intptr_t per_thread_stream = 2;  // CUDA's own streams have the handles 0, 1 and 2

intptr_t new_stream(unsigned flags) { return reinterpret_cast<intptr_t>(new Stream{flags}); }

intptr_t stream_create(SkipDispatch) { return new_stream(0); }

intptr_t stream_create_with_flags(unsigned flags, SkipDispatch) { return new_stream(flags); }

intptr_t stream_create_with_priority(unsigned flags, int, SkipDispatch) { return new_stream(flags); }

PyObject* stream_destroy(intptr_t stream, SkipDispatch) {
    if (stream > per_thread_stream) {
        delete reinterpret_cast<Stream*>(stream);
    }
    return none();
}

PyObject* stream_synchronize(intptr_t, SkipDispatch) {
    counters.synchronisations += 1;
    return none();
}

PyObject* always_done(intptr_t, SkipDispatch) {
    return PyLong_FromLong(0);  // cudaSuccess: nothing is ever in flight
}

PyObject* stream_wait_event(intptr_t, intptr_t, SkipDispatch, OptionalArguments*) { return none(); }

unsigned stream_flags(intptr_t stream, SkipDispatch) {
    bool predefined = stream <= per_thread_stream;
    return predefined ? 0 : reinterpret_cast<Stream*>(stream)->flags;
}

int stream_priority(intptr_t, SkipDispatch) { return 0; }

int stream_is_capturing(intptr_t, SkipDispatch) { return 0; }

intptr_t event_create(SkipDispatch) { return reinterpret_cast<intptr_t>(new Event{}); }

intptr_t event_create_with_flags(unsigned, SkipDispatch) { return reinterpret_cast<intptr_t>(new Event{}); }

PyObject* event_destroy(intptr_t event, SkipDispatch) {
    delete reinterpret_cast<Event*>(event);
    return none();
}

PyObject* event_record(intptr_t event, intptr_t, SkipDispatch) {
    *reinterpret_cast<Event*>(event) = Event{true, std::chrono::steady_clock::now()};
    return none();
}

PyObject* event_synchronize(intptr_t, SkipDispatch) {
    counters.synchronisations += 1;
    return none();
}

float event_elapsed_time(intptr_t start, intptr_t end, SkipDispatch) {
    const Event& first = *reinterpret_cast<Event*>(start);
    const Event& last = *reinterpret_cast<Event*>(end);
    if (!first.is_recorded || !last.is_recorded) {
        raise_runtime_error(invalid_handle, "cudaErrorInvalidResourceHandle: an event that was never recorded");
        return 0;
    }
    return std::chrono::duration<float, std::milli>(last.time - first.time).count();
}

}  // namespace
}  // namespace cpu_device
