// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), counter based: the
// number that chain c uses at step k depends on (seed, c, k) alone, not on batches, threads or devices.
//
//   key     = seed (64 bits)
//   counter = (chain: 64 bits, step: 32 bits, stream: 32 bits)
//   stream 1 + b: the normals of dimensions 4b ... 4b+3 of that chain
//   stream 0: the accept uniforms of chains 4 * chain ... 4 * chain + 3, a word each; a call for every uniform
//             would be a third of the accept step
#pragma once

#include "core/math.h"

SPML_NAMESPACE_BEGIN

struct Philox {
  uint32_t word[4];
};

SPML_HD Philox philox(uint64_t seed, uint64_t chain, uint32_t step, uint32_t stream) {
  uint32_t x0 = static_cast<uint32_t>(chain);
  uint32_t x1 = static_cast<uint32_t>(chain >> 32);
  uint32_t x2 = step;
  uint32_t x3 = stream;
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * x0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * x2;
    x0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ k0;
    x1 = static_cast<uint32_t>(p1);
    x2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ k1;
    x3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{x0, x1, x2, x3}};
}

constexpr uint32_t kUniformStream = 0;
constexpr uint32_t kFirstNormalStream = 1;
constexpr int kNormalsPerCall = 4;

// A uniform on (0, 1]: (word + 1/2) / 2^32, rounded once. It is never 0, so its logarithm is finite.
template <class T>
SPML_HD T uniform_from_bits(uint32_t word) {
  return (static_cast<T>(word) + T(0.5)) * T(0x1p-32);
}

constexpr int kUniformsPerCall = 4;

template <class T>
SPML_HD T accept_uniform(uint64_t seed, uint64_t chain, uint32_t step) {
  const Philox random = philox(seed, chain / kUniformsPerCall, step, kUniformStream);
  const uint32_t low = (chain & 1) != 0 ? random.word[1] : random.word[0];
  const uint32_t high = (chain & 1) != 0 ? random.word[3] : random.word[2];
  return uniform_from_bits<T>((chain & 2) != 0 ? high : low);
}

// Two independent standard normals from two words (Box and Muller, 1958).
template <class T>
SPML_HD void box_muller(uint32_t radius_word, uint32_t angle_word, T& first, T& second) {
  const T radius = square_root(T(-2) * log(uniform_from_bits<T>(radius_word)));
  const SinCos<T> angle = sincos_turns(static_cast<T>(angle_word) * T(0x1p-32));
  first = radius * angle.cosine;
  second = radius * angle.sine;
}

SPML_NAMESPACE_END
