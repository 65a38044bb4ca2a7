// What the executor (native/executor.hpp) and a compiled kernel tell each other. Both sides include this file, and
// the cache key of both covers it, so the two can never disagree about the layout.
#pragma once

#include <cstddef>

namespace cpu_device {

constexpr unsigned warp_size = 32;
constexpr unsigned most_threads_of_a_block = 1024;
constexpr size_t largest_exchanged_value = 16;
constexpr unsigned char poison = 0xff;  // NaN in every float format, -1 as an integer

struct Index3 {
    unsigned x;
    unsigned y;
    unsigned z;
};

// What one lane of a warp offers to the others during a shuffle or a vote.
struct Offer {
    alignas(16) unsigned char bytes[largest_exchanged_value];
    bool made;
};

// One kernel launch, as the thread that runs at the moment sees it. `thread` and `block` change at every switch.
struct Launch {
    Index3 thread;
    Index3 block;
    Index3 block_size;
    Index3 grid_size;
    char* dynamic_shared;
    Offer* offers;  // one for each thread of the block
    void (*wait_for_block)(int site);
    void (*wait_for_warp)(unsigned mask);
    void (*trap)(const char* message);  // does not return
};

using Entry = void (*)(void** arguments, Launch* launch);

}  // namespace cpu_device
