// bfloat16 as CuPy uses it: the upper half of a float, with arithmetic in float.
//
// CUDA semantics kept: conversion rounds to nearest, ties to even; NaN becomes CUDA's canonical 0x7fff.
#pragma once

#include <cstring>

struct __nv_bfloat16 {
    unsigned short bits;

    __nv_bfloat16() = default;

    __nv_bfloat16(float value) {
        unsigned word;
        std::memcpy(&word, &value, sizeof word);
        bool is_nan = (word & 0x7fffffffu) > 0x7f800000u;
        unsigned round_to_even = 0x7fffu + ((word >> 16) & 1u);
        bits = is_nan ? 0x7fff : static_cast<unsigned short>((word + round_to_even) >> 16);
    }

    operator float() const {
        unsigned word = static_cast<unsigned>(bits) << 16;
        float value;
        std::memcpy(&value, &word, sizeof value);
        return value;
    }
};

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 value;
    value.bits = bits;
    return value;
}

inline bool __hisnan(__nv_bfloat16 value) { return (value.bits & 0x7fff) > 0x7f80; }

inline bool __hisinf(__nv_bfloat16 value) { return (value.bits & 0x7fff) == 0x7f80; }

inline float __bfloat162float(__nv_bfloat16 value) { return static_cast<float>(value); }

inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
