#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define SPML_ISA avx2
#define SPML_TABLE kCpuAvx2
#include "core/isa_table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
