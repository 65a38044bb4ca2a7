// Makes one C function callable from Python too.
//
// CuPy's Cython modules reach an entry point of cupy_backends through a capsule that holds a C function; its Python
// modules reach the same entry point as an attribute. Each is written once, with the C signature, and this file
// derives the other.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace cpu_device {

// Cython's last parameters: whether to skip a Python override, and a struct of optional arguments.
enum SkipDispatch : int {};
struct OptionalArguments;

template <class Value>
Value from_python(PyObject* object) {
    if constexpr (std::is_same_v<Value, PyObject*>) {
        return object;
    } else if constexpr (std::is_unsigned_v<Value>) {
        return static_cast<Value>(PyLong_AsUnsignedLongLongMask(object));
    } else {
        return static_cast<Value>(PyLong_AsLongLong(object));
    }
}

template <class Value>
PyObject* to_python(Value value) {
    if (PyErr_Occurred() != nullptr) {
        return nullptr;
    }
    if constexpr (std::is_floating_point_v<Value>) {
        return PyFloat_FromDouble(value);
    } else {
        return PyLong_FromLongLong(static_cast<long long>(value));
    }
}

template <class Value>
constexpr bool is_hidden = std::is_same_v<Value, SkipDispatch> || std::is_same_v<Value, OptionalArguments*>;

template <auto function>
struct PythonCall;

template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct PythonCall<function> {
    static constexpr bool takes_options = (std::is_same_v<Parameters, OptionalArguments*> || ...);
    static constexpr size_t required = (0 + ... + (is_hidden<Parameters> ? 0 : 1));

    template <class Value>
    static Value argument(PyObject* const* arguments, size_t position) {
        if constexpr (is_hidden<Value>) {
            return Value{};
        } else {
            return from_python<Value>(arguments[position]);
        }
    }

    template <size_t... position>
    static std::tuple<Parameters...> all(PyObject* const* arguments, std::index_sequence<position...>) {
        return std::tuple<Parameters...>{argument<Parameters>(arguments, position)...};
    }

    static PyObject* call(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
        size_t given = static_cast<size_t>(count);
        if (given < required || (given > required && !takes_options)) {
            PyErr_Format(PyExc_TypeError, "takes %zu arguments (%zu given)", required, given);
            return nullptr;
        }
        auto converted = all(arguments, std::index_sequence_for<Parameters...>());
        if (PyErr_Occurred() != nullptr) {
            return nullptr;
        }
        if constexpr (std::is_same_v<Result, PyObject*>) {
            return std::apply(function, converted);
        } else {
            return to_python(std::apply(function, converted));
        }
    }
};

}  // namespace cpu_device
