// The entry points of CUDA's driver: modules of kernels, and launches.
#pragma once

#include <dlfcn.h>
#include <link.h>

#include <string>
#include <vector>

#include "device.hpp"
#include "python_call.hpp"

namespace cpu_device {
namespace {

struct Module {
    void* handle;
    std::vector<Kernel*> kernels;
    std::vector<intptr_t> globals;
};

// `image` is the path of the shared object that kernels.py compiled: what a cubin's bytes are to CUDA.
intptr_t module_load(PyObject* image, SkipDispatch) {
    const char* path = PyBytes_AsString(image);
    if (path == nullptr) {
        return 0;
    }
    void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        raise_driver_error(invalid_image, std::string("CUDA_ERROR_INVALID_IMAGE: ") + dlerror());
        return 0;
    }
    return reinterpret_cast<intptr_t>(new Module{handle, {}, {}});
}

PyObject* module_unload(intptr_t address, SkipDispatch) {
    Module* module = reinterpret_cast<Module*>(address);
    for (Kernel* kernel : module->kernels) {
        delete kernel;
    }
    for (intptr_t variable : module->globals) {
        memory.disown(variable);
    }
    dlclose(module->handle);
    delete module;
    return none();
}

template <class Function>
Function symbol(const Module& module, const std::string& name) {
    return reinterpret_cast<Function>(dlsym(module.handle, name.c_str()));
}

int find_thread_local_size(dl_phdr_info* info, size_t, void* data) {
    SharedMemory* shared = static_cast<SharedMemory*>(data);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        if (info->dlpi_tls_modid == shared->module && info->dlpi_phdr[i].p_type == PT_TLS) {
            shared->size = info->dlpi_phdr[i].p_memsz;
        }
    }
    return 0;
}

SharedMemory shared_memory_of(void* handle) {
    size_t number = 0;
    dlinfo(handle, RTLD_DI_TLS_MODID, &number);
    SharedMemory shared{number, 0};
    if (number != 0) {
        dl_iterate_phdr(find_thread_local_size, &shared);
    }
    return shared;
}

intptr_t module_function(intptr_t address, PyObject* name_object, SkipDispatch) {
    const char* name = PyUnicode_AsUTF8(name_object);
    if (name == nullptr) {
        return 0;
    }
    Module& module = *reinterpret_cast<Module*>(address);
    Entry entry = symbol<Entry>(module, std::string("cpu_device_entry_") + name);
    if (entry == nullptr) {
        raise_driver_error(not_found,
                           std::string("CUDA_ERROR_NOT_FOUND: no kernel extern \"C\" __global__ void ") + name);
        return 0;
    }
    Kernel* kernel = new Kernel;
    kernel->entry = entry;
    kernel->name = name;
    kernel->uses_barriers = symbol<int (*)()>(module, "cpu_device_uses_barriers")() != 0;
    kernel->shared = shared_memory_of(module.handle);
    kernel->owns_shared = symbol<int (*)()>(module, "cpu_device_kernel_count")() == 1;
    kernel->most_dynamic_shared = 48 * 1024;
    module.kernels.push_back(kernel);
    return reinterpret_cast<intptr_t>(kernel);
}

intptr_t module_global(intptr_t address, PyObject* name_object, SkipDispatch) {
    const char* name = PyUnicode_AsUTF8(name_object);
    if (name == nullptr) {
        return 0;
    }
    Module& module = *reinterpret_cast<Module*>(address);
    void* variable = symbol<void*>(module, name);
    Dl_info info;
    ElfW(Sym)* entry = nullptr;
    if (variable == nullptr || dladdr1(variable, &info, reinterpret_cast<void**>(&entry), RTLD_DL_SYMENT) == 0) {
        raise_driver_error(not_found, std::string("CUDA_ERROR_NOT_FOUND: no global variable ") + name);
        return 0;
    }
    intptr_t found = reinterpret_cast<intptr_t>(variable);
    memory.adopt(found, entry->st_size);
    module.globals.push_back(found);
    return found;
}

constexpr int attribute_max_dynamic_shared = 8;      // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int attribute_shared_memory_carveout = 9;  // CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
constexpr int attribute_max_threads = 0;             // CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
constexpr int most_opt_in_shared = 232448;

PyObject* function_set_attribute(intptr_t address, int attribute, int value, SkipDispatch) {
    if (attribute == attribute_shared_memory_carveout) {
        return none();  // a hint
    }
    if (attribute != attribute_max_dynamic_shared) {
        return raise_not_covered("cuFuncSetAttribute of attribute " + std::to_string(attribute));
    }
    if (value < 0 || value > most_opt_in_shared) {
        return raise_driver_error(invalid_value,
                                  "CUDA_ERROR_INVALID_VALUE: dynamic shared memory beyond the device's 227 KiB");
    }
    reinterpret_cast<Kernel*>(address)->most_dynamic_shared = static_cast<unsigned>(value);
    return none();
}

int function_get_attribute(int attribute, intptr_t address, SkipDispatch) {
    if (attribute == attribute_max_dynamic_shared) {
        return static_cast<int>(reinterpret_cast<Kernel*>(address)->most_dynamic_shared);
    }
    if (attribute == attribute_max_threads) {
        return most_threads_of_a_block;
    }
    raise_not_covered("cuFuncGetAttribute of attribute " + std::to_string(attribute));
    return -2;  // Cython: except? -2
}

// Why CUDA would refuse this launch; empty if it would not.
std::string why_illegal(const Kernel& kernel, Index3 grid, Index3 block, unsigned shared) {
    bool empty = grid.x == 0 || grid.y == 0 || grid.z == 0 || block.x == 0 || block.y == 0 || block.z == 0;
    if (empty) {
        return "a grid or block without threads";
    }
    if (block.x > 1024 || block.y > 1024 || block.z > 64) {
        return "a block beyond (1024, 1024, 64)";
    }
    if (block.x * block.y * block.z > most_threads_of_a_block) {
        return "a block of more than 1024 threads";
    }
    if (grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) {
        return "a grid beyond (2147483647, 65535, 65535)";
    }
    if (kernel.owns_shared && kernel.shared.size > 48 * 1024) {
        return "more than 48 KiB of static shared memory";
    }
    if (shared > kernel.most_dynamic_shared) {
        return "more dynamic shared memory than the kernel's limit of " + std::to_string(kernel.most_dynamic_shared) +
               " bytes";
    }
    return "";
}

PyObject* launch_kernel(intptr_t address, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, intptr_t, intptr_t arguments,
                        intptr_t extra, SkipDispatch) {
    const Kernel& kernel = *reinterpret_cast<Kernel*>(address);
    Index3 grid{grid_x, grid_y, grid_z};
    Index3 block{block_x, block_y, block_z};
    if (extra != 0) {
        return raise_not_covered("cuLaunchKernel with packed arguments");
    }
    std::string reason = why_illegal(kernel, grid, block, shared);
    if (!reason.empty()) {
        return raise_driver_error(invalid_value,
                                  "CUDA_ERROR_INVALID_VALUE: launch of " + kernel.name + " with " + reason);
    }
    counters.launches[kernel.name] += 1;
    try {
        executor.run(kernel, reinterpret_cast<void**>(arguments), grid, block, shared);
    } catch (const std::exception& error) {
        std::string message = kernel.name + ": " + error.what();
        return raise_new(PyObject_CallFunction(python.kernel_failed, "s", message.c_str()));
    }
    return none();
}

// CuPy asks what block size would fill the device. Any legal answer keeps the results: one block of 256 threads.
PyObject* occupancy_block_size(intptr_t, size_t, int, SkipDispatch) { return Py_BuildValue("(ii)", 1, 256); }

int occupancy_blocks(intptr_t, int, size_t, SkipDispatch) { return 1; }

}  // namespace
}  // namespace cpu_device
