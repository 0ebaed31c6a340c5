// The sampling kernels on the CPU: tiles of kLanes chains, each arithmetic step a loop over the lanes of a tile
// that the compiler turns into vector instructions. Every lane does the same operations in the same order, so
// neither the position of a chain in its tile nor the number of threads changes a bit of its result.
//
// No standard or torch header may be included from here: see core/macros.h.
#pragma once

#include "core/philox.h"
#include "sampling/imh.h"
#include "sampling/log_weight.h"
#include "sampling/params.h"

SPML_NAMESPACE_BEGIN

constexpr int kLanes = 64;

// A loop over the lanes of a tile; iterations touch their own lane only.
#if defined(__clang__)
#define SPML_FOR_LANES(l) _Pragma("clang loop vectorize(assume_safety)") for (int l = 0; l < kLanes; ++l)
#else
#define SPML_FOR_LANES(l) _Pragma("GCC ivdep") for (int l = 0; l < kLanes; ++l)
#endif

template <class T>
struct alignas(64) Tile {
  T lane[kLanes];
};

// An 8 x 8 block, rows to columns, in registers: interleaving rows i and i + 4 three times transposes.
template <class T>
struct Block8 {
  typedef T Row __attribute__((vector_size(8 * sizeof(T))));
  Row row[8];
};

template <class T>
inline __attribute__((always_inline)) void transpose(Block8<T>& block) {
#pragma GCC unroll 3
  for (int round = 0; round < 3; ++round) {
    Block8<T> next;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto a = block.row[i];
      const auto b = block.row[i + 4];
      next.row[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
      next.row[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    }
    block = next;
  }
}

// A full tile of rows so short that the compiler can interleave the loads itself.
template <int kColumns, class Scalar, class T>
inline void load_narrow(const Scalar* rows, Tile<T>* columns) {
  for (int c = 0; c < kColumns; ++c) {
    SPML_FOR_LANES(l) {
      columns[c].lane[l] = widen(rows[l * kColumns + c]);
    }
  }
}

// Rows of n_columns become columns of lanes; lanes past the last chain are zero and never stored.
template <class Scalar, class T>
inline void load_transposed(const Scalar* rows, int n_columns, int lanes, Tile<T>* columns) {
  if (lanes > kLanes) {
    __builtin_unreachable();  // or GCC warns of writes past the tile
  }
  if (lanes == kLanes) {
    switch (n_columns) {
      case 1:
        return load_narrow<1>(rows, columns);
      case 2:
        return load_narrow<2>(rows, columns);
      case 3:
        return load_narrow<3>(rows, columns);
      case 4:
        return load_narrow<4>(rows, columns);
      default:
        break;
    }
  }
  const int in_blocks = lanes == kLanes ? n_columns & ~7 : 0;
  for (int c = 0; c < in_blocks; c += 8) {
    for (int l = 0; l < kLanes; l += 8) {
      Block8<T> block;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const Scalar* source = rows + static_cast<int64_t>(l + i) * n_columns + c;
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
          block.row[i][j] = widen(source[j]);
        }
      }
      transpose(block);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        __builtin_memcpy(&columns[c + j].lane[l], &block.row[j], sizeof(block.row[j]));
      }
    }
  }
  for (int l = 0; l < lanes; ++l) {
    for (int c = in_blocks; c < n_columns; ++c) {
      columns[c].lane[l] = widen(rows[static_cast<int64_t>(l) * n_columns + c]);
    }
  }
  for (int c = 0; c < n_columns; ++c) {
    for (int l = lanes; l < kLanes; ++l) {
      columns[c].lane[l] = T(0);
    }
  }
}

// Largest logit of each lane.
template <class T>
inline void largest_logit(const Tile<T>* columns, int n_columns, Tile<T>& top) {
  top = columns[0];
  for (int c = 1; c < n_columns; ++c) {
    SPML_FOR_LANES(l) {
      top.lane[l] = maximum(top.lane[l], columns[c].lane[l]);
    }
  }
}

// The denominator of softmax(a / T), relative to its largest term.
//
// While it computes, it asks for the [kLanes, n_columns] logits at `next`, a column's worth a time. Tiles are loaded
// in bursts that the hardware prefetcher does not bridge, and requests in one burst would only queue: spread over
// the exponentials they hide the memory altogether (40 classes from DRAM: 22 to 14 ns a proposal).
template <class Scalar, class T>
inline void softmax_sum(const Tile<T>* columns, int n_columns, const Tile<T>& top, T beta, const Scalar* next,
                        Tile<T>& scaled_top, Tile<T>& sum) {
  const T beta2 = beta * Float<T>::kLog2E;
  Tile<T> top2;
  SPML_FOR_LANES(l) {
    scaled_top.lane[l] = top.lane[l] * beta;
    top2.lane[l] = top.lane[l] * beta2;
    sum.lane[l] = T(0);
  }
  constexpr int kColumnBytes = kLanes * static_cast<int>(sizeof(Scalar));
  for (int c = 0; c < n_columns; ++c) {
    for (int line = 0; line < kColumnBytes; line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(next) + c * kColumnBytes + line, 0, 2);
    }
    SPML_FOR_LANES(l) {
      sum.lane[l] += softmax_term(columns[c].lane[l], beta2, top2.lane[l]);
    }
  }
}

// Log weights of the `lanes` proposals from `row` on, for every target; the tile at `next_row` will be asked for next.
// scratch: [N + F] tiles.
template <class Scalar, class T>
inline void log_weight_tile(const LogWeightParams& p, int64_t row, int64_t next_row, int lanes, Tile<T>* scratch,
                            Tile<T>* out /* [T] */) {
  Tile<T>* logits = scratch;
  const Scalar* class_logits = static_cast<const Scalar*>(p.class_logits);
  load_transposed(class_logits + row * p.n_classes, p.n_classes, lanes, logits);
  Tile<T> validity;
  load_transposed(static_cast<const Scalar*>(p.validity_logit) + row, 1, lanes, &validity);

  Tile<T> other;  // what all targets add: log_correction and D_f
  if (p.log_correction != nullptr) {
    load_transposed(static_cast<const T*>(p.log_correction) + row, 1, lanes, &other);
  } else {
    SPML_FOR_LANES(l) {
      other.lane[l] = T(0);
    }
  }
  Tile<T> top;
  largest_logit(logits, p.n_classes, top);
  if (p.fake_logits != nullptr) {
    Tile<T>* fake = scratch + p.n_classes;
    const Scalar* fake_logits = static_cast<const Scalar*>(p.fake_logits);
    load_transposed(fake_logits + row * p.n_fake_classes, p.n_fake_classes, lanes, fake);
    Tile<T> fake_top;
    Tile<T> fake_scaled_top;
    Tile<T> fake_sum;
    largest_logit(fake, p.n_fake_classes, fake_top);
    softmax_sum(fake, p.n_fake_classes, fake_top, T(1), fake_logits + next_row * p.n_fake_classes, fake_scaled_top,
                fake_sum);
    SPML_FOR_LANES(l) {
      other.lane[l] -= fake[p.proposal_class].lane[l] - fake_top.lane[l] - log(fake_sum.lane[l]);
    }
  }

  const T* inv_temperature = static_cast<const T*>(p.inv_temperature);
  const T* log_gamma = static_cast<const T*>(p.log_gamma);
  Tile<T> scaled_top;
  Tile<T> sum;
  for (int t = 0; t < p.n_targets; ++t) {
    const T beta = inv_temperature[2 * t];
    const T validity_beta = inv_temperature[2 * t + 1];
    if (t == 0 || beta != inv_temperature[2 * t - 2]) {
      softmax_sum(logits, p.n_classes, top, beta, class_logits + next_row * p.n_classes, scaled_top, sum);
    }
    Tile<T> lowest;
    Tile<T> highest;
    SPML_FOR_LANES(l) {
      lowest.lane[l] = infinity<T>();
      highest.lane[l] = -infinity<T>();
    }
    for (int w = 0; w < p.words; ++w) {
      const int64_t* mask = p.masks + static_cast<int64_t>(2 * t) * p.words + w;
      for (uint64_t bits = static_cast<uint64_t>(mask[0]); bits != 0; bits &= bits - 1) {
        const int c = 64 * w + __builtin_ctzll(bits);
        const T gamma = log_gamma[static_cast<int64_t>(t) * p.n_classes + c];
        SPML_FOR_LANES(l) {
          lowest.lane[l] = minimum(lowest.lane[l], scaled_logit(logits[c].lane[l], beta, gamma));
        }
      }
      for (uint64_t bits = static_cast<uint64_t>(mask[p.words]); bits != 0; bits &= bits - 1) {
        const int c = 64 * w + __builtin_ctzll(bits);
        const T gamma = log_gamma[static_cast<int64_t>(t) * p.n_classes + c];
        SPML_FOR_LANES(l) {
          highest.lane[l] = maximum(highest.lane[l], scaled_logit(logits[c].lane[l], beta, gamma));
        }
      }
    }
    SPML_FOR_LANES(l) {
      out[t].lane[l] = log_weight(lowest.lane[l], highest.lane[l], scaled_top.lane[l], sum.lane[l],
                                  validity.lane[l] * validity_beta, other.lane[l]);
    }
  }
}

template <class T>
struct ChainTile {
  Tile<T> weight[kChainWeights];
  Tile<int32_t> count[kChainCounts];
};

template <class T>
inline void imh_step_tile(const Tile<T>& proposal, const Tile<T>& log_uniform, int32_t step, ChainTile<T>& tile) {
  // Plain pointers: GCC does not vectorise a loop over members of nested over-aligned structs.
  const T* offered = proposal.lane;
  const T* log_u = log_uniform.lane;
  T* log_weight = tile.weight[0].lane;
  T* max_log_weight = tile.weight[1].lane;
  T* sum = tile.weight[2].lane;
  T* sum_of_squares = tile.weight[3].lane;
  int32_t* winner = tile.count[0].lane;
  int32_t* accepted = tile.count[1].lane;
  int32_t* supported = tile.count[2].lane;
  SPML_FOR_LANES(l) {
    Chain<T> chain{log_weight[l], max_log_weight[l], sum[l],      sum_of_squares[l],
                   winner[l],     accepted[l],       supported[l]};
    imh_step(chain, offered[l], log_u[l], step);
    log_weight[l] = chain.log_weight;
    max_log_weight[l] = chain.max_log_weight;
    sum[l] = chain.sum;
    sum_of_squares[l] = chain.sum_of_squares;
    winner[l] = chain.winner;
    accepted[l] = chain.accepted;
    supported[l] = chain.supported;
  }
}

template <class T>
inline void log_uniform_tile(const ScanParams& scan, int64_t chain, uint32_t step, Tile<T>& out) {
  const uint64_t first = static_cast<uint64_t>(scan.first_chain + chain);
  const uint64_t first_call = first / kUniformsPerCall;
  constexpr int kCalls = kLanes / kUniformsPerCall;
  uint32_t words[kLanes + kUniformsPerCall];  // one call more, for tiles that do not start with a call
#pragma GCC ivdep
  for (int i = 0; i < kCalls; ++i) {
    const Philox random = philox(scan.seed, first_call + i, step, kUniformStream);
    words[4 * i] = random.word[0];
    words[4 * i + 1] = random.word[1];
    words[4 * i + 2] = random.word[2];
    words[4 * i + 3] = random.word[3];
  }
  const int skip = static_cast<int>(first % kUniformsPerCall);
  if (skip != 0) {
    const Philox random = philox(scan.seed, first_call + kCalls, step, kUniformStream);
    for (int k = 0; k < kUniformsPerCall; ++k) {
      words[kLanes + k] = random.word[k];
    }
  }
  SPML_FOR_LANES(l) {
    out.lane[l] = log(uniform_from_bits<T>(words[skip + l]));
  }
}

// Notes the first NaN or +inf weight; lanes past the last chain must not count.
template <class T>
inline void check_tile(const Tile<T>& proposal, int lanes, int64_t first_row, int64_t* invalid) {
  int bad = 0;
  SPML_FOR_LANES(l) {
    bad |= !valid_log_weight(proposal.lane[l]);
  }
  for (int l = 0; bad != 0 && l < lanes; ++l) {
    if (!valid_log_weight(proposal.lane[l])) {
      const int64_t row = first_row + l;
      int64_t seen = __atomic_load_n(invalid, __ATOMIC_RELAXED);
      while (row < seen && !__atomic_compare_exchange_n(invalid, &seen, row, true, __ATOMIC_RELAXED,
                                                        __ATOMIC_RELAXED)) {
      }
    }
  }
}

template <class T>
inline void move_chains(const LogWeightParams& p, const ScanParams& scan, int64_t chain, int lanes,
                        ChainTile<T>* tiles, bool store) {
  for (int t = 0; t < p.n_targets; ++t) {
    for (int f = 0; f < kChainWeights; ++f) {
      T* field = static_cast<T*>(scan.weights) + (static_cast<int64_t>(f) * p.n_targets + t) * p.chains + chain;
      for (int l = 0; l < lanes; ++l) {
        if (store) {
          field[l] = tiles[t].weight[f].lane[l];
        } else {
          tiles[t].weight[f].lane[l] = field[l];
        }
      }
    }
    for (int f = 0; f < kChainCounts; ++f) {
      int32_t* field = scan.counts + (static_cast<int64_t>(f) * p.n_targets + t) * p.chains + chain;
      for (int l = 0; l < lanes; ++l) {
        if (store) {
          field[l] = tiles[t].count[f].lane[l];
        } else {
          tiles[t].count[f].lane[l] = field[l];
        }
      }
    }
  }
}

// Tiles whose chains one thread carries along a step: logits of a step lie side by side in memory, so longer
// strides through them keep the hardware prefetcher going.
constexpr int kGroup = 8;

// Scratch of one thread, in bytes.
template <class T>
inline int64_t scratch_bytes(const LogWeightParams& p) {
  const int64_t tiles = int64_t{p.n_classes} + p.n_fake_classes + p.n_targets;
  return tiles * static_cast<int64_t>(sizeof(Tile<T>)) +
         kGroup * p.n_targets * static_cast<int64_t>(sizeof(ChainTile<T>));
}

// s2m_log_weight over chains [begin, end).
// Bytes per proposal: reads (N + 1 [+ F] [+ 1]) logits, writes T weights.
template <class Scalar, class T>
void run_log_weight(const LogWeightParams& p, const ScanParams&, int64_t begin, int64_t end, void* scratch) {
  Tile<T>* out = static_cast<Tile<T>*>(scratch);
  for (int64_t step = 0; step < p.steps; ++step) {
    for (int64_t chain = begin; chain < end; chain += kLanes) {
      const int lanes = static_cast<int>(minimum<int64_t>(kLanes, end - chain));
      const int64_t row = step * p.chains + chain;
      log_weight_tile<Scalar>(p, row, row + kLanes, lanes, out + p.n_targets, out);
      for (int t = 0; t < p.n_targets; ++t) {
        T* log_weights = static_cast<T*>(p.log_weights) + (t * p.steps + step) * p.chains + chain;
        for (int l = 0; l < lanes; ++l) {
          log_weights[l] = out[t].lane[l];
        }
      }
    }
  }
}

// The scan over chains [begin, end): kFused computes log weights from logits (s2m_imh_scan), otherwise they are
// read (imh_scan).
// Bytes per proposal: reads (N + 1 [+ F] [+ 1]) logits or T weights, writes nothing; per chain and target the
// 28 bytes (fp32) of its state are read and written once a block.
template <class Scalar, class T, bool kFused>
void run_scan(const LogWeightParams& p, const ScanParams& scan, int64_t begin, int64_t end, void* scratch) {
  ChainTile<T>* chains = static_cast<ChainTile<T>*>(scratch);  // [kGroup, T]
  Tile<T>* proposal = reinterpret_cast<Tile<T>*>(chains + kGroup * p.n_targets);
  const auto lanes_at = [&](int64_t chain) { return static_cast<int>(minimum<int64_t>(kLanes, end - chain)); };
  for (int64_t first = begin; first < end; first += kGroup * kLanes) {
    const int64_t last = minimum(first + kGroup * kLanes, end);
    const auto tile_of = [&](int64_t chain) { return chains + (chain - first) / kLanes * p.n_targets; };
    for (int64_t chain = first; chain < last; chain += kLanes) {
      move_chains(p, scan, chain, lanes_at(chain), tile_of(chain), /*store=*/false);
    }
    for (int64_t step = 0; step < p.steps; ++step) {
      const int32_t global_step = scan.first_step + static_cast<int32_t>(step);
      for (int64_t chain = first; chain < last; chain += kLanes) {
        const int lanes = lanes_at(chain);
        if constexpr (kFused) {
          const int64_t row = step * p.chains + chain;
          const int64_t next_row = chain + kLanes < last ? row + kLanes : (step + 1) * p.chains + first;
          log_weight_tile<Scalar>(p, row, next_row, lanes, proposal + p.n_targets, proposal);
        } else {
          for (int t = 0; t < p.n_targets; ++t) {
            const T* row = static_cast<const T*>(p.log_weights) + (t * p.steps + step) * p.chains + chain;
            load_transposed(row, 1, lanes, &proposal[t]);
          }
        }
        Tile<T> log_uniform;
        log_uniform_tile(scan, chain, static_cast<uint32_t>(global_step), log_uniform);
        for (int t = 0; t < p.n_targets; ++t) {
          check_tile(proposal[t], lanes, global_step * p.chains + chain, scan.invalid);
          imh_step_tile(proposal[t], log_uniform, global_step, tile_of(chain)[t]);
        }
      }
    }
    for (int64_t chain = first; chain < last; chain += kLanes) {
      move_chains(p, scan, chain, lanes_at(chain), tile_of(chain), /*store=*/true);
    }
  }
}

template <class T>
void run_uniform(const NoiseParams& p, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(p.out);
  for (int64_t r = begin; r < end; ++r) {
    out[r] = accept_uniform<T>(p.seed, static_cast<uint64_t>(p.chains[r]), static_cast<uint32_t>(p.steps[r]));
  }
}

// Rows [begin, end) of [R, dim] normals: lanes are Philox calls, four dimensions each.
template <class T>
void run_normal(const NoiseParams& p, int64_t begin, int64_t end) {
  const int64_t calls_per_row = (p.dim + kNormalsPerCall - 1) / kNormalsPerCall;
  const int64_t last = end * calls_per_row;
  int64_t row = begin;
  int64_t call = 0;
  for (int64_t first = begin * calls_per_row; first < last; first += kLanes) {
    Tile<uint64_t> chain;
    Tile<uint32_t> step;
    Tile<uint32_t> stream;
    Tile<int64_t> target;  // where the four normals go; rows end in a shorter group when 4 does not divide dim
    Tile<int32_t> count;
    const int lanes = static_cast<int>(minimum<int64_t>(kLanes, last - first));
    for (int l = 0; l < kLanes; ++l) {
      const bool inside = l < lanes;
      chain.lane[l] = inside ? static_cast<uint64_t>(p.chains[row]) : 0;
      step.lane[l] = inside ? static_cast<uint32_t>(p.steps[row]) : 0;
      stream.lane[l] = kFirstNormalStream + static_cast<uint32_t>(call);
      target.lane[l] = row * p.dim + call * kNormalsPerCall;
      count.lane[l] = static_cast<int32_t>(minimum<int64_t>(kNormalsPerCall, p.dim - call * kNormalsPerCall));
      const bool wrap = call + 1 == calls_per_row;
      row += inside & wrap;
      call = wrap ? 0 : call + 1;
    }
    Tile<uint32_t> word[kNormalsPerCall];
    SPML_FOR_LANES(l) {
      const Philox random = philox(p.seed, chain.lane[l], step.lane[l], stream.lane[l]);
      word[0].lane[l] = random.word[0];
      word[1].lane[l] = random.word[1];
      word[2].lane[l] = random.word[2];
      word[3].lane[l] = random.word[3];
    }
    Tile<T> normal[kNormalsPerCall];
    for (int pair = 0; pair < kNormalsPerCall; pair += 2) {
      SPML_FOR_LANES(l) {
        box_muller(word[pair].lane[l], word[pair + 1].lane[l], normal[pair].lane[l], normal[pair + 1].lane[l]);
      }
    }
    T* out = static_cast<T*>(p.out);
    for (int l = 0; l < lanes; ++l) {
      for (int k = 0; k < count.lane[l]; ++k) {
        out[target.lane[l] + k] = normal[k].lane[l];
      }
    }
  }
}

SPML_NAMESPACE_END
