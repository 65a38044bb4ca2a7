// The shim defines assert() for kernels: a failure is an error of the launch. The system's header would end the
// process.
#pragma once
