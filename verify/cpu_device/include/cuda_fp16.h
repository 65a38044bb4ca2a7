// Half precision as CuPy uses it: a storage format, with arithmetic in float.
//
// CUDA semantics kept: conversions round to nearest, ties to even; overflow gives infinity; NaN stays NaN.
#pragma once

#include <cstring>

namespace cpu_device {

// Right shift of `value`, rounded to nearest, ties to even.
inline unsigned shift_to_even(unsigned value, unsigned shift) {
    unsigned half = 1u << (shift - 1);
    unsigned kept = value >> shift;
    unsigned lost = value & ((1u << shift) - 1);
    bool up = lost > half || (lost == half && (kept & 1u));
    return kept + (up ? 1u : 0u);
}

inline unsigned short half_bits_of_float(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    unsigned sign = (bits >> 16) & 0x8000u;
    unsigned magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return static_cast<unsigned short>(sign | 0x7e00u);  // NaN
    }
    if (magnitude >= 0x47800000u) {
        return static_cast<unsigned short>(sign | 0x7c00u);  // 65536 and more: infinity
    }
    if (magnitude < 0x33000000u) {
        return static_cast<unsigned short>(sign);  // less than half of the smallest subnormal
    }
    if (magnitude < 0x38800000u) {
        // A subnormal half: the significand with its hidden bit, moved to the fixed exponent.
        unsigned significand = (magnitude & 0x7fffffu) | 0x800000u;
        unsigned shift = 126u - (magnitude >> 23);
        return static_cast<unsigned short>(sign | shift_to_even(significand, shift));
    }
    // A carry out of the significand raises the exponent, up to infinity, as it should.
    unsigned rebased = magnitude - (112u << 23);
    return static_cast<unsigned short>(sign | shift_to_even(rebased, 13));
}

// Double to float, keeping in the last bit that something was lost: a second rounding then gives what one would have
// given.
inline float rounded_to_odd(double value) {
    float nearest = static_cast<float>(value);
    if (static_cast<double>(nearest) == value || value != value) {
        return nearest;
    }
    unsigned bits;
    std::memcpy(&bits, &nearest, sizeof bits);
    bool away_from_zero = value > 0 ? nearest > value : nearest < value;
    bits -= away_from_zero ? 1u : 0u;
    bits |= 1u;
    std::memcpy(&nearest, &bits, sizeof nearest);
    return nearest;
}

inline float float_of_half_bits(unsigned short half) {
    unsigned sign = (half & 0x8000u) << 16;
    unsigned exponent = (half >> 10) & 0x1fu;
    unsigned significand = half & 0x3ffu;
    unsigned bits;
    if (exponent == 0) {
        float subnormal = static_cast<float>(significand) * 5.9604644775390625e-8f;  // 2^-24, exact
        std::memcpy(&bits, &subnormal, sizeof bits);
    } else if (exponent == 31) {
        bits = 0x7f800000u | (significand << 13);
    } else {
        bits = ((exponent + 112u) << 23) | (significand << 13);
    }
    bits |= sign;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace cpu_device

struct __half_raw {
    unsigned short x;
};

struct __half {
    unsigned short bits;

    __half() = default;
    __half(float value) : bits(cpu_device::half_bits_of_float(value)) {}
    __half(const __half_raw& raw) : bits(raw.x) {}
    explicit __half(double value) : __half(cpu_device::rounded_to_odd(value)) {}
    explicit __half(bool value) : __half(static_cast<float>(value)) {}
    explicit __half(int value) : __half(static_cast<float>(value)) {}
    explicit __half(unsigned value) : __half(static_cast<float>(value)) {}
    explicit __half(long long value) : __half(static_cast<float>(value)) {}
    explicit __half(unsigned long long value) : __half(static_cast<float>(value)) {}

    operator float() const { return cpu_device::float_of_half_bits(bits); }
    operator __half_raw() const { return {bits}; }
};

using half = __half;

inline unsigned short __half_as_ushort(__half value) { return value.bits; }

inline __half __ushort_as_half(unsigned short bits) { return __half(__half_raw{bits}); }

inline float __half2float(__half value) { return static_cast<float>(value); }

inline __half __float2half(float value) { return __half(value); }

inline __half __float2half_rn(float value) { return __half(value); }
