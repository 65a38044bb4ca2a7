// What the device did. Totals since the start: cpu_device/counters.py takes differences.
#pragma once

#include <map>
#include <string>

namespace cpu_device {

struct Copies {
    long long count = 0;
    long long bytes = 0;

    void add(size_t size) {
        count += 1;
        bytes += static_cast<long long>(size);
    }
};

struct Counters {
    std::map<std::string, long long> launches;  // by kernel name
    Copies host_to_device;
    Copies device_to_host;
    Copies device_to_device;
    long long synchronisations = 0;  // the host waited for the device
};

}  // namespace cpu_device
