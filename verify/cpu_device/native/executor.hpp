// Runs a kernel: block after block, and within a block thread after thread.
//
// CUDA semantics kept here
//   - blocks are independent and come in any order: forward, or in reverse;
//   - threads of a block run in any order between two barriers: forward, or in reverse. Each runs alone until it waits;
//   - __syncthreads() releases a block when all of its threads that have not exited wait at the same barrier;
//   - a warp-wide operation releases its lanes when all lanes of the mask that have not exited wait with the same mask;
//   - shared memory has no promised value when a block starts: it is poisoned;
//   - a barrier that can never be released is an error, where a device would hang or go on with undefined values.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../include/launch.h"

// AddressSanitizer must be told that a switch of stacks is meant; where it is not loaded, these are null.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}

// The dynamic linker's way to a module's thread-local storage, which it makes on first use.
extern "C" void* __tls_get_addr(void* index);

namespace cpu_device {

// The static shared memory of a module: what its thread-local storage holds, see include/cuda_shim.h.
struct SharedMemory {
    unsigned long module;  // the dynamic linker's number; 0 where there is none
    size_t size;

    char* begin() const {
        unsigned long index[2] = {module, 0};  // tls_index: module and offset
        return static_cast<char*>(__tls_get_addr(index));
    }
};

struct Kernel {
    Entry entry;
    std::string name;
    bool uses_barriers;
    SharedMemory shared;
    bool owns_shared;  // all of it: the module has no other kernel
    unsigned most_dynamic_shared;
};

// A kernel that cannot go on: thrown inside a thread, caught where the thread began.
struct KernelFailure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class State { ready, waits_for_block, waits_for_warp, exited };

// A stack for one thread of a block, with a page below it that faults instead of running into the next stack.
class Stack {
   public:
    static constexpr size_t size = 512 * 1024;  // CUDA's limit for the local memory of a thread

    Stack() {
        page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        void* memory = mmap(nullptr, size + page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            throw std::bad_alloc();
        }
        base_ = static_cast<char*>(memory);
        mprotect(base_, page_, PROT_NONE);
    }
    ~Stack() { munmap(base_, size + page_); }
    Stack(const Stack&) = delete;

    char* bottom() const { return base_ + page_; }

   private:
    char* base_;
    size_t page_;
};

// A place to come back to: frame, stack and instruction, in GCC's layout.
struct Place {
    void* words[5];
};

// Goes on at `place`. GCC wants the jump in another function than the place that it leads to, and one that it cannot
// look into.
[[gnu::noipa, noreturn]] inline void jump(Place& place) { __builtin_longjmp(place.words, 1); }

// Stores where this call is, and goes on at `to`; returns when somebody goes on at `here`. Unlike swapcontext() it
// makes no system call: a block of 1024 threads switches thousands of times.
[[gnu::noipa]] inline void switch_stacks(Place& here, Place& to) {
    if (__builtin_setjmp(here.words) == 0) {
        jump(to);
    }
}

// One thread of a block. Fibers outlive the kernel: one that has run its thread is idle until it gets the next.
struct Fiber {
    Stack stack;
    Place place;
    bool idle = false;
    State state = State::exited;
    int barrier = 0;             // which __syncthreads() it waits at
    unsigned mask = 0;           // the lanes that it waits for
    void* fake_stack = nullptr;  // AddressSanitizer's
};

class Executor {
   public:
    bool reverse = false;

    // Throws KernelFailure.
    void run(const Kernel& kernel, void** arguments, Index3 grid, Index3 block, size_t dynamic_shared) {
        Executor* before = running_;
        running_ = this;
        kernel_ = &kernel;
        arguments_ = arguments;
        threads_ = block.x * block.y * block.z;
        failure_.clear();
        std::vector<char> shared(dynamic_shared);
        std::vector<Offer> offers(threads_);
        launch_ = Launch{};
        launch_.block_size = block;
        launch_.grid_size = grid;
        launch_.dynamic_shared = shared.data();
        launch_.offers = offers.data();
        launch_.wait_for_block = kernel.uses_barriers ? wait_for_block : barrier_in_plain_kernel;
        launch_.wait_for_warp = kernel.uses_barriers ? wait_for_warp : warp_barrier_in_plain_kernel;
        launch_.trap = trap;
        try {
            run_blocks(shared, grid);
        } catch (...) {
            running_ = before;
            throw;
        }
        running_ = before;
    }

   private:
    inline static Executor* running_ = nullptr;

    const Kernel* kernel_ = nullptr;
    void** arguments_ = nullptr;
    unsigned threads_ = 0;
    Launch launch_;
    std::string failure_;
    std::vector<std::unique_ptr<Fiber>> fibers_;
    Place scheduler_;
    void* scheduler_fake_stack_ = nullptr;
    const void* scheduler_bottom_ = nullptr;
    size_t scheduler_size_ = 0;
    unsigned current_ = 0;

    size_t in_order(size_t position, size_t count) const { return reverse ? count - 1 - position : position; }

    static Index3 unflatten(size_t rank, Index3 size) {
        Index3 index;
        index.x = static_cast<unsigned>(rank % size.x);
        index.y = static_cast<unsigned>(rank / size.x % size.y);
        index.z = static_cast<unsigned>(rank / size.x / size.y);
        return index;
    }

    void run_blocks(std::vector<char>& shared, Index3 grid) {
        size_t blocks = static_cast<size_t>(grid.x) * grid.y * grid.z;
        for (size_t position = 0; position < blocks; ++position) {
            launch_.block = unflatten(in_order(position, blocks), grid);
            std::fill(shared.begin(), shared.end(), static_cast<char>(poison));
            if (kernel_->shared.size > 0) {
                std::memset(kernel_->shared.begin(), poison, kernel_->shared.size);
            }
            if (kernel_->uses_barriers) {
                run_block_of_fibers();
            } else {
                run_block_of_calls();
            }
        }
    }

    // --- without barriers: a thread is a call ------------------------------------------------------------------------

    void run_block_of_calls() {
        for (unsigned position = 0; position < threads_; ++position) {
            launch_.thread = unflatten(in_order(position, threads_), launch_.block_size);
            kernel_->entry(arguments_, &launch_);
        }
    }

    // The source was searched for barriers and none was found: were one to be reached all the same, it would not work.
    [[noreturn]] static void barrier_in_plain_kernel(int) {
        throw KernelFailure("it reached a barrier that its source does not show");
    }
    [[noreturn]] static void warp_barrier_in_plain_kernel(unsigned) {
        throw KernelFailure("it reached a warp-wide operation that its source does not show");
    }
    [[noreturn]] static void trap(const char* message) { throw KernelFailure(message); }

    // --- with barriers: a thread is a fiber --------------------------------------------------------------------------

    void run_block_of_fibers() {
        while (fibers_.size() < threads_) {
            fibers_.push_back(std::make_unique<Fiber>());
        }
        for (unsigned thread = 0; thread < threads_; ++thread) {
            if (!fibers_[thread]->idle) {  // new, or left behind by a kernel that failed
                begin(thread);
            }
            fibers_[thread]->state = State::ready;
        }
        while (run_ready_fibers() > 0) {
            release_warps();
            release_block();
        }
        for (unsigned thread = 0; thread < threads_; ++thread) {
            if (fibers_[thread]->state != State::exited) {
                throw KernelFailure(why_nothing_moves());
            }
        }
    }

    // Gives the fiber its stack and lets it become idle on it.
    void begin(unsigned thread) {
        current_ = thread;
        Fiber& fiber = *fibers_[thread];
        fiber.fake_stack = nullptr;
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = fiber.stack.bottom();
        context.uc_stack.ss_size = Stack::size;
        context.uc_link = nullptr;
        makecontext(&context, live, 0);
        announce_switch(&scheduler_fake_stack_, fiber.stack.bottom(), Stack::size);
        enter(context);
        confirm_switch(scheduler_fake_stack_, nullptr, nullptr);
    }

    [[gnu::noipa]] void enter(ucontext_t& context) {
        if (__builtin_setjmp(scheduler_.words) == 0) {
            setcontext(&context);
        }
    }

    // Lets every fiber that can run do so once; returns how many could.
    unsigned run_ready_fibers() {
        unsigned ran = 0;
        for (unsigned position = 0; position < threads_; ++position) {
            unsigned thread = static_cast<unsigned>(in_order(position, threads_));
            if (fibers_[thread]->state != State::ready) {
                continue;
            }
            ++ran;
            resume(thread);
            if (!failure_.empty()) {
                throw KernelFailure(failure_);
            }
        }
        return ran;
    }

    void resume(unsigned thread) {
        current_ = thread;
        Fiber& fiber = *fibers_[thread];
        launch_.thread = unflatten(thread, launch_.block_size);
        announce_switch(&scheduler_fake_stack_, fiber.stack.bottom(), Stack::size);
        switch_stacks(scheduler_, fiber.place);
        confirm_switch(scheduler_fake_stack_, nullptr, nullptr);
    }

    // Back to the scheduler; returns when the fiber is resumed.
    void leave(Fiber& fiber) {
        announce_switch(&fiber.fake_stack, scheduler_bottom_, scheduler_size_);
        switch_stacks(fiber.place, scheduler_);
        confirm_switch(fiber.fake_stack, &scheduler_bottom_, &scheduler_size_);
    }

    static void announce_switch(void** fake_stack, const void* bottom, size_t size) {
        if (__sanitizer_start_switch_fiber != nullptr) {
            __sanitizer_start_switch_fiber(fake_stack, bottom, size);
        }
    }

    static void confirm_switch(void* fake_stack, const void** bottom, size_t* size) {
        if (__sanitizer_finish_switch_fiber != nullptr) {
            __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
        }
    }

    // What a fiber does all its life.
    static void live() {
        Executor& self = *running_;
        Fiber& fiber = *self.fibers_[self.current_];
        confirm_switch(fiber.fake_stack, &self.scheduler_bottom_, &self.scheduler_size_);
        while (true) {
            fiber.idle = true;
            self.leave(fiber);
            fiber.idle = false;
            self.run_thread();
            fiber.state = State::exited;
        }
    }

    void run_thread() {
        try {
            kernel_->entry(arguments_, &launch_);
        } catch (const std::exception& error) {
            failure_ = error.what();
        }
    }

    static void wait_for_block(int barrier) {
        Fiber& fiber = *running_->fibers_[running_->current_];
        fiber.state = State::waits_for_block;
        fiber.barrier = barrier;
        running_->leave(fiber);
    }

    static void wait_for_warp(unsigned mask) {
        unsigned lane = running_->current_ % warp_size;
        if (((mask >> lane) & 1u) == 0) {
            throw KernelFailure("a lane takes part in a warp-wide operation whose mask leaves it out");
        }
        Fiber& fiber = *running_->fibers_[running_->current_];
        fiber.state = State::waits_for_warp;
        fiber.mask = mask;
        running_->leave(fiber);
    }

    void release_warps() {
        for (unsigned first = 0; first < threads_; first += warp_size) {
            unsigned lanes = std::min(warp_size, threads_ - first);
            for (unsigned lane = 0; lane < lanes; ++lane) {
                if (fibers_[first + lane]->state == State::waits_for_warp) {
                    release_mask(first, lanes, fibers_[first + lane]->mask);
                }
            }
        }
    }

    // Releases the lanes that wait with `mask` if all that it names are there. Lanes that have exited, or that the last
    // warp of the block never had, are not waited for.
    void release_mask(unsigned first, unsigned lanes, unsigned mask) {
        for (unsigned lane = 0; lane < lanes; ++lane) {
            const Fiber& fiber = *fibers_[first + lane];
            bool named = ((mask >> lane) & 1u) != 0;
            bool arrived = fiber.state == State::waits_for_warp && fiber.mask == mask;
            if (named && !arrived && fiber.state != State::exited) {
                return;
            }
        }
        for (unsigned lane = 0; lane < lanes; ++lane) {
            Fiber& fiber = *fibers_[first + lane];
            if (fiber.state == State::waits_for_warp && fiber.mask == mask) {
                fiber.state = State::ready;
            }
        }
    }

    void release_block() {
        int barrier = -1;
        for (unsigned thread = 0; thread < threads_; ++thread) {
            const Fiber& fiber = *fibers_[thread];
            if (fiber.state == State::exited) {
                continue;
            }
            if (fiber.state != State::waits_for_block) {
                return;
            }
            if (barrier >= 0 && fiber.barrier != barrier) {
                throw KernelFailure("divergent barrier: threads of one block wait at different __syncthreads()");
            }
            barrier = fiber.barrier;
        }
        for (unsigned thread = 0; thread < threads_; ++thread) {
            Fiber& fiber = *fibers_[thread];
            if (fiber.state == State::waits_for_block) {
                fiber.state = State::ready;
            }
        }
    }

    std::string why_nothing_moves() const {
        unsigned at_block = 0;
        unsigned at_warp = 0;
        for (unsigned thread = 0; thread < threads_; ++thread) {
            const Fiber& fiber = *fibers_[thread];
            at_block += fiber.state == State::waits_for_block ? 1 : 0;
            at_warp += fiber.state == State::waits_for_warp ? 1 : 0;
        }
        return "deadlock: " + std::to_string(at_block) + " threads of a block wait at __syncthreads() and " +
               std::to_string(at_warp) + " in a warp-wide operation, each for threads that never come";
    }
};

}  // namespace cpu_device
