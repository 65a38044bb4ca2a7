// The one device of this process, and how its functions raise CuPy's errors.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string>

#include "counters.hpp"
#include "executor.hpp"
#include "memory.hpp"

namespace cpu_device {
namespace {

Memory memory;
Executor executor;
Counters counters;

struct ErrorClasses {
    PyObject* runtime_error;       // a function of (status, message) that returns CuPy's CUDARuntimeError
    PyObject* driver_error;        // the same for CuPy's CUDADriverError
    PyObject* kernel_failed;       // KernelError(message)
    PyObject* not_covered;         // NotCoveredError(what)
    PyObject* pointer_attributes;  // CuPy's PointerAttributes
    PyObject* device_properties;   // dict
};
ErrorClasses python;

constexpr int invalid_value = 1;     // cudaErrorInvalidValue, CUDA_ERROR_INVALID_VALUE
constexpr int out_of_memory = 2;     // cudaErrorMemoryAllocation
constexpr int invalid_device = 101;  // cudaErrorInvalidDevice
constexpr int invalid_image = 200;   // CUDA_ERROR_INVALID_IMAGE
constexpr int invalid_handle = 400;  // cudaErrorInvalidResourceHandle
constexpr int not_found = 500;       // CUDA_ERROR_NOT_FOUND

PyObject* raise_new(PyObject* error) {
    if (error != nullptr) {
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error)), error);
        Py_DECREF(error);
    }
    return nullptr;
}

PyObject* raise_runtime_error(int status, const std::string& message) {
    return raise_new(PyObject_CallFunction(python.runtime_error, "is", status, message.c_str()));
}

PyObject* raise_driver_error(int status, const std::string& message) {
    return raise_new(PyObject_CallFunction(python.driver_error, "is", status, message.c_str()));
}

PyObject* raise_not_covered(const std::string& what) {
    return raise_new(PyObject_CallFunction(python.not_covered, "s", what.c_str()));
}

PyObject* none() { Py_RETURN_NONE; }

}  // namespace
}  // namespace cpu_device
