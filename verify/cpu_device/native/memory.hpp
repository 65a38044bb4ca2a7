// Device memory: blocks of the host's heap, known by their address range.
//
// CUDA semantics kept here
//   - fresh memory has no promised value: it is poisoned, so that reading it unwritten shows (NaN, -1, True), and
//   poisoned
//     again before it is freed;
//   - a pointer is device memory, pinned host memory or none of CUDA's, and only the first kind can be the device side
//   of a
//     copy;
//   - a copy or a memset that leaves its allocation fails.
// Without CuPy's memory pool every array has a block of its own and of its exact size, so that AddressSanitizer, which
// watches the heap, sees the first byte beyond it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "../include/launch.h"

namespace cpu_device {

// The values of cudaMemoryType.
enum class MemoryKind : int { unregistered = 0, host = 1, device = 2 };

class Memory {
   public:
    static constexpr size_t alignment = 512;  // what cudaMalloc keeps to

    // Returns 0 where there is no memory left.
    intptr_t allocate(size_t size, MemoryKind kind) {
        void* address = nullptr;
        size_t at_least_one = size == 0 ? 1 : size;
        if (posix_memalign(&address, alignment, at_least_one) != 0) {
            return 0;
        }
        std::memset(address, poison, at_least_one);
        blocks_[reinterpret_cast<intptr_t>(address)] = Block{at_least_one, kind, true};
        return reinterpret_cast<intptr_t>(address);
    }

    // Returns false for an address that no allocation begins at. CUDA frees a null pointer without complaint.
    bool release(intptr_t address) {
        if (address == 0) {
            return true;
        }
        auto block = blocks_.find(address);
        if (block == blocks_.end() || !block->second.owned) {
            return false;
        }
        std::memset(reinterpret_cast<void*>(address), poison, block->second.size);
        std::free(reinterpret_cast<void*>(address));
        blocks_.erase(block);
        return true;
    }

    // A module's global variable: device memory that somebody else owns.
    void adopt(intptr_t address, size_t size) { blocks_[address] = Block{size, MemoryKind::device, false}; }

    void disown(intptr_t address) { blocks_.erase(address); }

    MemoryKind kind_of(intptr_t address) const {
        auto block = block_around(address);
        return block == blocks_.end() ? MemoryKind::unregistered : block->second.kind;
    }

    bool is_device(intptr_t address, size_t size) const {
        auto block = block_around(address);
        if (block == blocks_.end() || block->second.kind != MemoryKind::device) {
            return false;
        }
        return address + static_cast<intptr_t>(size) <= block->first + static_cast<intptr_t>(block->second.size);
    }

   private:
    struct Block {
        size_t size;
        MemoryKind kind;
        bool owned;
    };
    using Blocks = std::map<intptr_t, Block>;
    Blocks blocks_;

    Blocks::const_iterator block_around(intptr_t address) const {
        auto after = blocks_.upper_bound(address);
        if (after == blocks_.begin()) {
            return blocks_.end();
        }
        auto block = std::prev(after);
        bool inside = address < block->first + static_cast<intptr_t>(block->second.size);
        return inside ? block : blocks_.end();
    }
};

}  // namespace cpu_device
