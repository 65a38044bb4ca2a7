// CuPy's complex numbers include Thrust's namespace macros. This is all of Thrust that they need, without CUDA's headers.
#pragma once

#define THRUST_NAMESPACE_BEGIN namespace thrust {
#define THRUST_NAMESPACE_END }
