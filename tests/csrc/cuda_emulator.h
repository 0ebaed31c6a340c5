// Just enough of CUDA C++ to run this project's kernels on the CPU: a thread for every thread of a block, one block
// after another. It checks indices, tiles, remainders and barriers; it says nothing about speed.
#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#ifndef __shared__  // `static` where a kernel declares its shared arrays itself: all threads see the same one
#define __shared__
#endif
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline thread_local Dim3 threadIdx;
inline thread_local Dim3 blockIdx;
inline Dim3 gridDim;
inline std::barrier<>* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { __syncthreads(); }  // stronger than needed; every thread of a block must reach it
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }

inline long long atomicMin(long long* address, long long value) {
  std::atomic_ref<long long> target(*address);
  long long seen = target.load();
  while (value < seen && !target.compare_exchange_weak(seen, value)) {
  }
  return seen;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return std::atomic_ref<unsigned>(*address).fetch_add(value);
}

inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return std::atomic_ref<unsigned long long>(*address).fetch_add(value);
}

inline bool last_block_first = false;  // blocks may run in any order

template <class Kernel>
void launch(Dim3 grid, unsigned threads, Kernel kernel) {
  gridDim = grid;
  std::barrier<> barrier(threads);
  block_barrier = &barrier;
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      threadIdx = {t, 0, 0};
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = last_block_first ? Dim3{grid.x - 1 - x, grid.y - 1 - y, 0} : Dim3{x, y, 0};
          kernel();
          __syncthreads();  // blocks share one piece of "shared memory"
        }
      }
    });
  }
  for (std::thread& thread : pool) {
    thread.join();
  }
}
