// CUDA C++ as g++ can compile it: every kernel that CuPy generates or passes through is compiled behind this file.
//
// The threads of a block are fibers of one CPU thread, and one of them runs at a time (native/executor.hpp). So
// memory is sequentially consistent, fences are no-ops and atomics are plain reads and writes. What is not declared
// here does not compile: the error names it. `__CUDA_ARCH__` and `__CUDACC_RTC__` stay undefined, because headers
// take them for a licence to use device instructions.
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>
#include <utility>

#ifdef CUPY_JIT_MODE
#include <tuple>
#endif

#include "launch.h"

using std::ptrdiff_t;
using std::size_t;

// --- words of the language -------------------------------------------------------------------------------------------

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __host__
#define __device__
#define __global__
#define __managed__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

// Constant memory has external linkage, so that the host can find it by name and fill it.
#define __constant__

// Shared memory: one block runs at a time, so one object serves all of them. As thread-local objects, and there are no
// others, all of a module's shared memory lies in one piece that the executor can find and poison before each block,
// since CUDA promises no value there. AddressSanitizer watches the bounds of ordinary objects only, so under it they
// are ordinary.
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

// --- the launch that runs at the moment ------------------------------------------------------------------------------

namespace cpu_device {

static Launch* launch;
static char* dynamic_shared;  // what every `extern __shared__` array names: CUDA gives them all the same address

inline unsigned thread_rank() {
    const Index3& size = launch->block_size;
    const Index3& thread = launch->thread;
    return thread.x + size.x * (thread.y + size.y * thread.z);
}

inline unsigned lane() { return thread_rank() % warp_size; }

[[noreturn]] inline void trap(const char* message) {
    launch->trap(message);
    __builtin_unreachable();
}

}  // namespace cpu_device

#define threadIdx (cpu_device::launch->thread)
#define blockIdx (cpu_device::launch->block)
#define blockDim (cpu_device::launch->block_size)
#define gridDim (cpu_device::launch->grid_size)
#define warpSize (static_cast<int>(cpu_device::warp_size))

// A failed assertion ends the kernel with an error, as on a device; it does not end the process.
#undef assert
#define assert(condition) ((condition) ? static_cast<void>(0) : cpu_device::trap("assertion failed: " #condition))

inline void __trap() { cpu_device::trap("__trap()"); }

// --- barriers and fences ---------------------------------------------------------------------------------------------

// All threads of the block that have not exited must arrive, and at the same barrier: __COUNTER__ tells one from
// another, so that a barrier in a branch that only some threads take is an error here and not a hang.
#define __syncthreads() (cpu_device::launch->wait_for_block(__COUNTER__))

inline void __syncwarp(unsigned mask = 0xffffffffu) { cpu_device::launch->wait_for_warp(mask); }

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// --- shuffles and votes ----------------------------------------------------------------------------------------------

namespace cpu_device {

// Offers `mine` to the warp and waits until every lane of `mask` that has not exited did so too.
template <class Value>
inline void offer(unsigned mask, Value mine) {
    static_assert(sizeof(Value) <= largest_exchanged_value, "a shuffle moves 16 bytes at most");
    Offer& own = launch->offers[thread_rank()];
    std::memcpy(own.bytes, &mine, sizeof mine);
    own.made = true;
    launch->wait_for_warp(mask);
}

// Waits until every lane has read, and takes the offer back.
inline void withdraw(unsigned mask) {
    launch->wait_for_warp(mask);
    launch->offers[thread_rank()].made = false;
}

inline Offer* offer_of_lane(unsigned source_lane) {
    unsigned threads = launch->block_size.x * launch->block_size.y * launch->block_size.z;
    unsigned rank = thread_rank() - lane() + source_lane;
    bool exists = source_lane < warp_size && rank < threads;
    return exists && launch->offers[rank].made ? &launch->offers[rank] : nullptr;
}

// The value of `source_lane`. CUDA leaves it undefined where that lane takes no part: here it is poison.
template <class Value>
inline Value exchange(unsigned mask, Value mine, unsigned source_lane) {
    offer(mask, mine);
    Value received;
    Offer* source = offer_of_lane(source_lane);
    if (source == nullptr) {
        std::memset(static_cast<void*>(&received), poison, sizeof received);
    } else {
        std::memcpy(static_cast<void*>(&received), source->bytes, sizeof received);
    }
    withdraw(mask);
    return received;
}

inline unsigned votes(unsigned mask, bool mine) {
    offer(mask, mine);
    unsigned ballot = 0;
    for (unsigned other = 0; other < warp_size; ++other) {
        Offer* source = offer_of_lane(other);
        bool counts = source != nullptr && ((mask >> other) & 1u) != 0;
        if (counts && source->bytes[0] != 0) {
            ballot |= 1u << other;
        }
    }
    withdraw(mask);
    return ballot;
}

}  // namespace cpu_device

// A warp divides into segments of `width` lanes; a lane that would read outside of its segment gets its own value.
template <class Value>
inline Value __shfl_sync(unsigned mask, Value value, int source, int width = 32) {
    unsigned within = static_cast<unsigned>(width) - 1;
    unsigned segment = cpu_device::lane() & ~within;
    return cpu_device::exchange(mask, value, segment | (static_cast<unsigned>(source) & within));
}

template <class Value>
inline Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = 32) {
    int lane = static_cast<int>(cpu_device::lane());
    int segment = lane & ~(width - 1);
    int source = lane - static_cast<int>(delta);
    return cpu_device::exchange(mask, value, static_cast<unsigned>(source >= segment ? source : lane));
}

template <class Value>
inline Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = 32) {
    unsigned lane = cpu_device::lane();
    unsigned last = lane | (static_cast<unsigned>(width) - 1);
    unsigned source = lane + delta;
    return cpu_device::exchange(mask, value, source <= last ? source : lane);
}

template <class Value>
inline Value __shfl_xor_sync(unsigned mask, Value value, int lane_mask, int width = 32) {
    unsigned lane = cpu_device::lane();
    unsigned last = lane | (static_cast<unsigned>(width) - 1);
    unsigned source = lane ^ static_cast<unsigned>(lane_mask);
    return cpu_device::exchange(mask, value, source <= last ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return cpu_device::votes(mask, predicate != 0); }

inline int __any_sync(unsigned mask, int predicate) { return cpu_device::votes(mask, predicate != 0) != 0; }

inline int __all_sync(unsigned mask, int predicate) { return cpu_device::votes(mask, predicate == 0) == 0; }

// --- atomics: one thread runs at a time, so a read and a write are one operation
// ----------------------------------------

namespace cpu_device {

template <class Value>
inline Value replace(Value* address, Value value) {
    Value before = *address;
    *address = value;
    return before;
}

}  // namespace cpu_device

// clang-format off
#define CPU_DEVICE_ATOMIC(name, Value, result) \
    inline Value name(Value* address, Value value) { \
        Value before = *address; \
        return cpu_device::replace<Value>(address, result); \
    }
#define CPU_DEVICE_COMPARE_AND_SWAP(Value) \
    inline Value atomicCAS(Value* address, Value expected, Value value) { \
        return cpu_device::replace<Value>(address, *address == expected ? value : *address); \
    }
#define CPU_DEVICE_INTEGER_ATOMICS(Value) \
    CPU_DEVICE_ATOMIC(atomicMin, Value, before < value ? before : value) \
    CPU_DEVICE_ATOMIC(atomicMax, Value, before > value ? before : value) \
    CPU_DEVICE_ATOMIC(atomicAnd, Value, before & value) \
    CPU_DEVICE_ATOMIC(atomicOr, Value, before | value) \
    CPU_DEVICE_ATOMIC(atomicXor, Value, before ^ value)
// clang-format on

// The overloads are CUDA's own: CuPy's atomics.cuh adds those for long long, half and bfloat16 on top of them.
CPU_DEVICE_ATOMIC(atomicAdd, int, before + value)
CPU_DEVICE_ATOMIC(atomicAdd, unsigned, before + value)
CPU_DEVICE_ATOMIC(atomicAdd, unsigned long long, before + value)
CPU_DEVICE_ATOMIC(atomicAdd, float, before + value)
CPU_DEVICE_ATOMIC(atomicAdd, double, before + value)
CPU_DEVICE_ATOMIC(atomicSub, int, before - value)
CPU_DEVICE_ATOMIC(atomicSub, unsigned, before - value)
CPU_DEVICE_ATOMIC(atomicInc, unsigned, before >= value ? 0u : before + 1u)
CPU_DEVICE_ATOMIC(atomicDec, unsigned, before == 0u || before > value ? value : before - 1u)
CPU_DEVICE_ATOMIC(atomicExch, int, value)
CPU_DEVICE_ATOMIC(atomicExch, unsigned, value)
CPU_DEVICE_ATOMIC(atomicExch, unsigned long long, value)
CPU_DEVICE_ATOMIC(atomicExch, float, value)
CPU_DEVICE_COMPARE_AND_SWAP(int)
CPU_DEVICE_COMPARE_AND_SWAP(unsigned)
CPU_DEVICE_COMPARE_AND_SWAP(unsigned long long)
CPU_DEVICE_INTEGER_ATOMICS(int)
CPU_DEVICE_INTEGER_ATOMICS(unsigned)
CPU_DEVICE_INTEGER_ATOMICS(long long)
CPU_DEVICE_INTEGER_ATOMICS(unsigned long long)

// --- small vectors ---------------------------------------------------------------------------------------------------

// clang-format off
#define CPU_DEVICE_VECTORS(Value, name) \
    struct alignas(2 * sizeof(Value)) name##2 { Value x, y; }; \
    struct name##3 { Value x, y, z; }; \
    struct alignas(4 * sizeof(Value) < 16 ? 4 * sizeof(Value) : 16) name##4 { Value x, y, z, w; }; \
    inline name##2 make_##name##2(Value x, Value y) { return {x, y}; } \
    inline name##3 make_##name##3(Value x, Value y, Value z) { return {x, y, z}; } \
    inline name##4 make_##name##4(Value x, Value y, Value z, Value w) { return {x, y, z, w}; }
// clang-format on

CPU_DEVICE_VECTORS(int, int)
CPU_DEVICE_VECTORS(unsigned, uint)
CPU_DEVICE_VECTORS(float, float)
CPU_DEVICE_VECTORS(double, double)

struct dim3 {
    unsigned x;
    unsigned y;
    unsigned z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- arithmetic ------------------------------------------------------------------------------------------------------

using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

// CUDA's min and max take two values of one type, or two that the usual conversions bring to one.
template <class Left, class Right, class Common = decltype(std::declval<Left>() + std::declval<Right>()),
          class = std::enable_if_t<std::is_integral<Left>::value && std::is_integral<Right>::value>>
inline Common min(Left left, Right right) {
    Common a = static_cast<Common>(left);
    Common b = static_cast<Common>(right);
    return b < a ? b : a;
}

template <class Left, class Right, class Common = decltype(std::declval<Left>() + std::declval<Right>()),
          class = std::enable_if_t<std::is_integral<Left>::value && std::is_integral<Right>::value>>
inline Common max(Left left, Right right) {
    Common a = static_cast<Common>(left);
    Common b = static_cast<Common>(right);
    return a < b ? b : a;
}

// Of floats they are fmin and fmax: a NaN loses against a number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

// The fast intrinsics are as exact here as the functions that they stand for; on a device they are less so.
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }

// Named roundings: separate operations that never contract, or one that always does.
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
__attribute__((optimize("fp-contract=off"))) inline float __fadd_rn(float x, float y) { return x + y; }
__attribute__((optimize("fp-contract=off"))) inline float __fmul_rn(float x, float y) { return x * y; }
__attribute__((optimize("fp-contract=off"))) inline double __dadd_rn(double x, double y) { return x + y; }
__attribute__((optimize("fp-contract=off"))) inline double __dmul_rn(double x, double y) { return x * y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline double __dsqrt_rn(double x) { return sqrt(x); }

// --- bits ------------------------------------------------------------------------------------------------------------

namespace cpu_device {

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

}  // namespace cpu_device

inline int __float_as_int(float x) { return cpu_device::same_bits<int>(x); }
inline float __int_as_float(int x) { return cpu_device::same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return cpu_device::same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cpu_device::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cpu_device::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cpu_device::same_bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

template <class Value>
inline Value __ldg(const Value* address) {
    return *address;
}

// --- the way in from the executor ------------------------------------------------------------------------------------

namespace cpu_device {

template <class Kernel>
struct Arguments;

// `arguments` holds the address of each argument's value, as cuLaunchKernel takes them.
template <class... Parameters>
struct Arguments<void(Parameters...)> {
    template <size_t... position>
    static void pass(void (*kernel)(Parameters...), void** arguments, std::index_sequence<position...>) {
        kernel(*static_cast<std::remove_cv_t<Parameters>*>(arguments[position])...);
    }

    static void call(void (*kernel)(Parameters...), void** arguments) {
        pass(kernel, arguments, std::index_sequence_for<Parameters...>());
    }
};

}  // namespace cpu_device

#define CPU_DEVICE_KERNEL(entry, ...)                                                                        \
    extern "C" void entry(void** arguments, cpu_device::Launch* launch) {                                    \
        cpu_device::launch = launch;                                                                         \
        cpu_device::dynamic_shared = launch->dynamic_shared;                                                 \
        cpu_device::Arguments<std::remove_pointer_t<decltype(&__VA_ARGS__)>>::call(&__VA_ARGS__, arguments); \
    }

#define CPU_DEVICE_MODULE(barriers, kernels)                       \
    extern "C" int cpu_device_uses_barriers() { return barriers; } \
    extern "C" int cpu_device_kernel_count() { return kernels; }
