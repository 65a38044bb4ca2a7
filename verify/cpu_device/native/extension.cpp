// The CPU device's side of CuPy: the entry points of CUDA's runtime and driver that CuPy's Cython modules import.
//
// Cython publishes a module's C functions as capsules in its table __pyx_capi__, each named after its C signature,
// and a module that imports one checks the name. install() replaces the capsules before `import cupy` can read them.
// A capsule is only replaced where its name is the signature that stands here: after an upgrade of CuPy that changes
// one, installing fails. Entry points without an implementation are replaced by a function that raises and names
// them.
//
// All of it runs on the calling thread, under the GIL, before the call returns: streams and events have nothing to
// wait for.

#include "python_call.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "device.hpp"
#include "driver.hpp"
#include "runtime.hpp"

namespace cpu_device {
namespace {

// --- the tables ------------------------------------------------------------------------------------------------------

struct EntryPoint {
    const char* name;
    const char* signature;  // of the C function, as Cython writes it into the capsule's name
    void* function;
    PyMethodDef python;  // the same function for Python; without a name where Python cannot see it
};

#define ENTRY_POINT(name, signature, function)                                                                         \
    EntryPoint {                                                                                                       \
        name, signature, reinterpret_cast<void*>(&function), {                                                         \
            name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&PythonCall<&function>::call)), METH_FASTCALL, \
                nullptr                                                                                                \
        }                                                                                                              \
    }

EntryPoint runtime_entry_points[] = {
    EntryPoint{"_ensure_context", "PyObject *(void)", reinterpret_cast<void*>(&ensure_context), {}},
    ENTRY_POINT("getDevice", "int (int __pyx_skip_dispatch)", get_device),
    ENTRY_POINT("setDevice", "PyObject *(int, int __pyx_skip_dispatch)", set_device),
    ENTRY_POINT("getDeviceCount", "int (int __pyx_skip_dispatch)", get_device_count),
    ENTRY_POINT("driverGetVersion", "int (int __pyx_skip_dispatch)", driver_version),
    ENTRY_POINT("runtimeGetVersion", "int (int __pyx_skip_dispatch)", runtime_version),
    ENTRY_POINT("_getCUDAMajorVersion", "int (int __pyx_skip_dispatch)", cuda_major_version),
    ENTRY_POINT("deviceGetAttribute", "int (int, int, int __pyx_skip_dispatch)", device_attribute),
    ENTRY_POINT("getDeviceProperties", "PyObject *(int, int __pyx_skip_dispatch)", device_properties),
    ENTRY_POINT("deviceSynchronize", "PyObject *(int __pyx_skip_dispatch)", device_synchronize),
    ENTRY_POINT("memGetInfo", "PyObject *(int __pyx_skip_dispatch)", memory_info),
    ENTRY_POINT("malloc", "intptr_t (size_t, int __pyx_skip_dispatch)", malloc_device),
    ENTRY_POINT("mallocAsync", "intptr_t (size_t, intptr_t, int __pyx_skip_dispatch)", malloc_device_async),
    ENTRY_POINT("hostAlloc", "intptr_t (size_t, unsigned int, int __pyx_skip_dispatch)", malloc_host),
    ENTRY_POINT("free", "PyObject *(intptr_t, int __pyx_skip_dispatch)", free_memory),
    ENTRY_POINT("freeHost", "PyObject *(intptr_t, int __pyx_skip_dispatch)", free_memory),
    ENTRY_POINT("freeAsync", "PyObject *(intptr_t, intptr_t, int __pyx_skip_dispatch)", free_memory_async),
    ENTRY_POINT("memcpy", "PyObject *(intptr_t, intptr_t, size_t, int, int __pyx_skip_dispatch)", memcpy_blocking),
    ENTRY_POINT("memcpyAsync", "PyObject *(intptr_t, intptr_t, size_t, int, intptr_t, int __pyx_skip_dispatch)",
                memcpy_async),
    ENTRY_POINT("memset", "PyObject *(intptr_t, int, size_t, int __pyx_skip_dispatch)", memset_blocking),
    ENTRY_POINT("memsetAsync", "PyObject *(intptr_t, int, size_t, intptr_t, int __pyx_skip_dispatch)", memset_async),
    ENTRY_POINT(
        "pointerGetAttributes",
        "struct __pyx_obj_13cupy_backends_4cuda_3api_7runtime_PointerAttributes *(intptr_t, int __pyx_skip_dispatch)",
        pointer_attributes),
    ENTRY_POINT("pointerGetMemoryType", "int (intptr_t, int __pyx_skip_dispatch)", pointer_memory_type),
    ENTRY_POINT("streamCreate", "intptr_t (int __pyx_skip_dispatch)", stream_create),
    ENTRY_POINT("streamCreateWithFlags", "intptr_t (unsigned int, int __pyx_skip_dispatch)", stream_create_with_flags),
    ENTRY_POINT("streamCreateWithPriority", "intptr_t (unsigned int, int, int __pyx_skip_dispatch)",
                stream_create_with_priority),
    ENTRY_POINT("streamDestroy", "PyObject *(intptr_t, int __pyx_skip_dispatch)", stream_destroy),
    ENTRY_POINT("streamSynchronize", "PyObject *(intptr_t, int __pyx_skip_dispatch)", stream_synchronize),
    ENTRY_POINT("streamQuery", "PyObject *(intptr_t, int __pyx_skip_dispatch)", always_done),
    ENTRY_POINT("streamWaitEvent",
                "PyObject *(intptr_t, intptr_t, int __pyx_skip_dispatch, struct "
                "__pyx_opt_args_13cupy_backends_4cuda_3api_7runtime_streamWaitEvent *__pyx_optional_args)",
                stream_wait_event),
    ENTRY_POINT("streamIsCapturing", "int (intptr_t, int __pyx_skip_dispatch)", stream_is_capturing),
    ENTRY_POINT("streamGetFlags", "unsigned int (intptr_t, int __pyx_skip_dispatch)", stream_flags),
    ENTRY_POINT("streamGetPriority", "int (intptr_t, int __pyx_skip_dispatch)", stream_priority),
    ENTRY_POINT("eventCreate", "intptr_t (int __pyx_skip_dispatch)", event_create),
    ENTRY_POINT("eventCreateWithFlags", "intptr_t (unsigned int, int __pyx_skip_dispatch)", event_create_with_flags),
    ENTRY_POINT("eventDestroy", "PyObject *(intptr_t, int __pyx_skip_dispatch)", event_destroy),
    ENTRY_POINT("eventRecord", "PyObject *(intptr_t, intptr_t, int __pyx_skip_dispatch)", event_record),
    ENTRY_POINT("eventSynchronize", "PyObject *(intptr_t, int __pyx_skip_dispatch)", event_synchronize),
    ENTRY_POINT("eventQuery", "PyObject *(intptr_t, int __pyx_skip_dispatch)", always_done),
    ENTRY_POINT("eventElapsedTime", "float (intptr_t, intptr_t, int __pyx_skip_dispatch)", event_elapsed_time),
};

EntryPoint driver_entry_points[] = {
    ENTRY_POINT("moduleLoadData", "intptr_t (PyObject *, int __pyx_skip_dispatch)", module_load),
    ENTRY_POINT("moduleUnload", "PyObject *(intptr_t, int __pyx_skip_dispatch)", module_unload),
    ENTRY_POINT("moduleGetFunction", "intptr_t (intptr_t, PyObject *, int __pyx_skip_dispatch)", module_function),
    ENTRY_POINT("moduleGetGlobal", "intptr_t (intptr_t, PyObject *, int __pyx_skip_dispatch)", module_global),
    ENTRY_POINT("funcSetAttribute", "PyObject *(intptr_t, int, int, int __pyx_skip_dispatch)", function_set_attribute),
    ENTRY_POINT("funcGetAttribute", "int (int, intptr_t, int __pyx_skip_dispatch)", function_get_attribute),
    ENTRY_POINT(
        "launchKernel",
        "PyObject *(intptr_t, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, "
        "unsigned int, intptr_t, intptr_t, intptr_t, int __pyx_skip_dispatch)",
        launch_kernel),
    ENTRY_POINT("occupancyMaxPotentialBlockSize", "PyObject *(intptr_t, size_t, int, int __pyx_skip_dispatch)",
                occupancy_block_size),
    ENTRY_POINT("occupancyMaxActiveBlocksPerMultiprocessor", "int (intptr_t, int, size_t, int __pyx_skip_dispatch)",
                occupancy_blocks),
};

// --- refusals --------------------------------------------------------------------------------------------------------

// A C function must know by itself which entry point it stands for: one instance of a template for each.
constexpr size_t most_refusals = 160;
std::vector<std::string> refused;

template <intptr_t failure, size_t slot>
intptr_t refuse() {
    raise_not_covered(refused[slot]);
    return failure;
}

template <intptr_t failure, size_t... slot>
void* refusal(size_t number, std::index_sequence<slot...>) {
    static void* const all[] = {reinterpret_cast<void*>(&refuse<failure, slot>)...};
    return all[number];
}

bool begins_with(const std::string& text, const char* beginning) { return text.rfind(beginning, 0) == 0; }

// The refusal for a function of `signature`, by what it returns; null for data and for functions that return
// structures, which nobody can call without a handle from an entry point that refuses. Arguments are the caller's to
// clean up in the calling conventions of Linux, so a refusal ignores them.
void* refusal_for(const std::string& signature, size_t number) {
    auto slots = std::make_index_sequence<most_refusals>();
    if (signature.find('(') == std::string::npos) {
        return nullptr;
    }
    for (const char* beginning : {"int (", "size_t ("}) {
        if (begins_with(signature, beginning)) {
            return refusal<-1>(number, slots);  // Cython: except? -1
        }
    }
    for (const char* beginning : {"PyObject *(", "struct __pyx_obj_", "intptr_t (", "uintmax_t ("}) {
        if (begins_with(signature, beginning)) {
            return refusal<0>(number, slots);  // a null object, or except? 0
        }
    }
    return nullptr;
}

// --- installation ----------------------------------------------------------------------------------------------------

bool replace_capsule(PyObject* table, const char* name, const char* signature, void* function) {
    PyObject* capsule = PyCapsule_New(function, signature, nullptr);
    if (capsule == nullptr) {
        return false;
    }
    int status = PyDict_SetItemString(table, name, capsule);
    Py_DECREF(capsule);
    return status == 0;
}

bool check_signature(PyObject* table, const EntryPoint& entry_point) {
    PyObject* capsule = PyDict_GetItemString(table, entry_point.name);
    const char* found = capsule == nullptr ? "nothing" : PyCapsule_GetName(capsule);
    if (std::strcmp(found, entry_point.signature) != 0) {
        PyErr_Format(PyExc_ImportError, "the entry point %s has the signature %s here; needs %s", entry_point.name,
                     found, entry_point.signature);
        return false;
    }
    return true;
}

template <size_t count>
bool check_signatures(PyObject* module, const EntryPoint (&entry_points)[count]) {
    PyObject* table = PyObject_GetAttrString(module, "__pyx_capi__");
    bool agree = table != nullptr;
    for (const EntryPoint& entry_point : entry_points) {
        agree = agree && check_signature(table, entry_point);
    }
    Py_XDECREF(table);
    return agree;
}

bool replace(PyObject* module, PyObject* table, EntryPoint& entry_point) {
    if (!replace_capsule(table, entry_point.name, entry_point.signature, entry_point.function)) {
        return false;
    }
    if (entry_point.python.ml_name == nullptr) {
        return true;
    }
    PyObject* callable = PyCFunction_New(&entry_point.python, nullptr);
    bool done = callable != nullptr && PyObject_SetAttrString(module, entry_point.name, callable) == 0;
    Py_XDECREF(callable);
    return done;
}

template <size_t count>
bool install_entry_points(PyObject* module, EntryPoint (&entry_points)[count]) {
    PyObject* table = PyObject_GetAttrString(module, "__pyx_capi__");
    bool done = table != nullptr;
    for (EntryPoint& entry_point : entry_points) {
        done = done && replace(module, table, entry_point);
    }
    Py_XDECREF(table);
    return done;
}

// Replaces every capsule of `module` that `names` lists by one that refuses.
bool refuse_entry_points(PyObject* module, PyObject* names) {
    PyObject* table = PyObject_GetAttrString(module, "__pyx_capi__");
    const char* module_name = PyModule_GetName(module);
    if (table == nullptr || module_name == nullptr) {
        return false;
    }
    for (Py_ssize_t position = 0; position < PyList_Size(names); ++position) {
        const char* name = PyUnicode_AsUTF8(PyList_GetItem(names, position));
        PyObject* capsule = name == nullptr ? nullptr : PyDict_GetItemString(table, name);
        if (capsule == nullptr || refused.size() == most_refusals) {
            PyErr_SetString(PyExc_ImportError, "more entry points than the CPU device can refuse");
            return false;
        }
        const char* signature = PyCapsule_GetName(capsule);
        void* function = refusal_for(signature, refused.size());
        if (function == nullptr) {
            continue;
        }
        refused.push_back(std::string(module_name) + "." + name);
        if (!replace_capsule(table, name, signature, function)) {
            return false;
        }
    }
    Py_DECREF(table);
    return true;
}

PyObject* install(PyObject*, PyObject* arguments, PyObject* keywords) {
    static const char* names[] = {"runtime",       "driver",      "runtime_error",      "driver_error",
                                  "kernel_failed", "not_covered", "pointer_attributes", "device_properties",
                                  nullptr};
    PyObject* runtime;
    PyObject* driver;
    bool parsed =
        PyArg_ParseTupleAndKeywords(arguments, keywords, "OOOOOOOO", const_cast<char**>(names), &runtime, &driver,
                                    &python.runtime_error, &python.driver_error, &python.kernel_failed,
                                    &python.not_covered, &python.pointer_attributes, &python.device_properties);
    if (!parsed) {
        return nullptr;
    }
    for (PyObject* kept : {python.runtime_error, python.driver_error, python.kernel_failed, python.not_covered,
                           python.pointer_attributes, python.device_properties}) {
        Py_INCREF(kept);
    }
    // All signatures first: a mismatch leaves CuPy as it was.
    bool done = check_signatures(runtime, runtime_entry_points) && check_signatures(driver, driver_entry_points);
    done = done && install_entry_points(runtime, runtime_entry_points);
    done = done && install_entry_points(driver, driver_entry_points);
    return done ? none() : nullptr;
}

PyObject* refuse_names(PyObject*, PyObject* arguments) {
    PyObject* module;
    PyObject* names;
    if (!PyArg_ParseTuple(arguments, "OO!", &module, &PyList_Type, &names)) {
        return nullptr;
    }
    return refuse_entry_points(module, names) ? none() : nullptr;
}

template <size_t count>
PyObject* names_of(EntryPoint (&entry_points)[count]) {
    PyObject* names = PyList_New(0);
    for (EntryPoint& entry_point : entry_points) {
        PyObject* name = PyUnicode_FromString(entry_point.name);
        PyList_Append(names, name);
        Py_DECREF(name);
    }
    return names;
}

PyObject* covered(PyObject*, PyObject*) {
    return Py_BuildValue("(NN)", names_of(runtime_entry_points), names_of(driver_entry_points));
}

PyObject* set_reverse(PyObject*, PyObject* value) {
    executor.reverse = PyObject_IsTrue(value) == 1;
    return none();
}

PyObject* count(PyObject*, PyObject*) {
    PyObject* launches = PyDict_New();
    for (const auto& [name, number] : counters.launches) {
        PyObject* value = PyLong_FromLongLong(number);
        PyDict_SetItemString(launches, name.c_str(), value);
        Py_DECREF(value);
    }
    return Py_BuildValue("{s:N,s:(LL),s:(LL),s:(LL),s:L}", "launches", launches,                                //
                         "host_to_device", counters.host_to_device.count, counters.host_to_device.bytes,        //
                         "device_to_host", counters.device_to_host.count, counters.device_to_host.bytes,        //
                         "device_to_device", counters.device_to_device.count, counters.device_to_device.bytes,  //
                         "synchronisations", counters.synchronisations);
}

PyMethodDef methods[] = {
    {"install", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&install)), METH_VARARGS | METH_KEYWORDS,
     nullptr},
    {"refuse", refuse_names, METH_VARARGS, nullptr},
    {"covered", covered, METH_NOARGS, nullptr},
    {"set_reverse", set_reverse, METH_O, nullptr},
    {"count", count, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "cpu_device_extension", nullptr, -1, methods};

}  // namespace
}  // namespace cpu_device

PyMODINIT_FUNC PyInit_cpu_device_extension() { return PyModule_Create(&cpu_device::definition); }
