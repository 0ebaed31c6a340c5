#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif
#define SPML_ISA avx512
#define SPML_TABLE kCpuAvx512
#include "core/isa_table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
