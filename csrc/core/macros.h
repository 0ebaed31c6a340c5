// What every kernel header needs to compile for the host, for each CPU instruction set, and for CUDA.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SPML_HD __host__ __device__ __forceinline__
#else
#define SPML_HD inline __attribute__((always_inline))
#endif

// Before a loop over lanes that share no memory.
#if defined(__clang__)
#define SPML_VECTORISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define SPML_VECTORISE _Pragma("GCC ivdep")
#endif

// The same headers are compiled once per CPU instruction set (core/isa_*.cpp). The inline namespace keeps
// the variants apart, so the linker can never pick an AVX-512 body for a machine that has no AVX-512.
#ifndef SPML_ISA
#define SPML_ISA generic
#endif

#define SPML_NAMESPACE_BEGIN \
  namespace spml {           \
  inline namespace SPML_ISA {
#define SPML_NAMESPACE_END \
  }                        \
  }
