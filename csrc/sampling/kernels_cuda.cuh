// The sampling kernels on CUDA: the pieces of log_weight.h, imh.h and philox.h, in the same order as the CPU runs
// them, one thread a proposal.
//
// Nothing of the CUDA runtime is named here, so the tests can run these very kernels on the CPU, a thread for a
// thread (tests/csrc/cuda_emulator.h).
#pragma once

#include "core/philox.h"
#include "sampling/imh.h"
#include "sampling/log_weight.h"
#include "sampling/params.h"

namespace spml::cuda {

constexpr int kThreads = 256;  // of every block

// A proposal's logits, wherever they lie: in device memory as they came, or widened in shared memory.
template <class Scalar>
struct LogitRow {
  const Scalar* logits;
  __device__ auto operator[](int c) const { return widen(logits[c]); }
};

// What all targets share of one proposal.
template <class T>
struct Shared {
  T validity, other, top;
};

// The denominator of softmax(a / T), relative to its largest term.
template <class T, class Row>
__device__ T softmax_sum(Row row, int n, T top, T beta) {
  const T beta2 = beta * Float<T>::kLog2E;
  const T top2 = top * beta2;
  T sum = T(0);
  for (int c = 0; c < n; ++c) {
    sum += softmax_term<T>(row[c], beta2, top2);
  }
  return sum;
}

template <class T, class Row>
__device__ T largest_logit(Row row, int n) {
  T top = row[0];
  for (int c = 1; c < n; ++c) {
    top = maximum<T>(top, row[c]);
  }
  return top;
}

// D_f is read straight from device memory: only one of its columns is needed beside the normaliser.
template <class Scalar, class T, class Row>
__device__ Shared<T> shared_terms(const LogWeightParams& p, int64_t index, Row row) {
  Shared<T> shared;
  shared.validity = widen(static_cast<const Scalar*>(p.validity_logit)[index]);
  shared.other = p.log_correction != nullptr ? static_cast<const T*>(p.log_correction)[index] : T(0);
  shared.top = largest_logit<T>(row, p.n_classes);
  if (p.fake_logits != nullptr) {
    const LogitRow<Scalar> fake{static_cast<const Scalar*>(p.fake_logits) + index * p.n_fake_classes};
    const T top = largest_logit<T>(fake, p.n_fake_classes);
    const T sum = softmax_sum<T>(fake, p.n_fake_classes, top, T(1));
    shared.other -= fake[p.proposal_class] - top - log(sum);
  }
  return shared;
}

// Log weights of targets [first, last); `use(t, log_weight)` takes them one by one.
template <class T, class Row, class Use>
__device__ void target_weights(const LogWeightParams& p, const Shared<T>& shared, Row row, int first, int last,
                               Use use) {
  const T* inv_temperature = static_cast<const T*>(p.inv_temperature);
  const T* log_gamma = static_cast<const T*>(p.log_gamma);
  T scaled_top = T(0);
  T sum = T(0);
  for (int t = first; t < last; ++t) {
    const T beta = inv_temperature[2 * t];
    if (t == first || beta != inv_temperature[2 * t - 2]) {
      scaled_top = shared.top * beta;
      sum = softmax_sum<T>(row, p.n_classes, shared.top, beta);
    }
    const T* gamma = log_gamma + static_cast<int64_t>(t) * p.n_classes;
    T lowest = infinity<T>();
    T highest = -infinity<T>();
    for (int w = 0; w < p.words; ++w) {
      const int64_t* mask = p.masks + static_cast<int64_t>(2 * t) * p.words + w;
      for (uint64_t bits = static_cast<uint64_t>(mask[0]); bits != 0; bits &= bits - 1) {
        const int c = 64 * w + __ffsll(static_cast<long long>(bits)) - 1;
        lowest = minimum(lowest, scaled_logit<T>(row[c], beta, gamma[c]));
      }
      for (uint64_t bits = static_cast<uint64_t>(mask[p.words]); bits != 0; bits &= bits - 1) {
        const int c = 64 * w + __ffsll(static_cast<long long>(bits)) - 1;
        highest = maximum(highest, scaled_logit<T>(row[c], beta, gamma[c]));
      }
    }
    use(t, log_weight(lowest, highest, scaled_top, sum, shared.validity * inv_temperature[2 * t + 1],
                      shared.other));
  }
}

// s2m_log_weight. Bytes per proposal: reads N + 1 [+ F] logits, writes T weights.
template <class Scalar>
__global__ void __launch_bounds__(kThreads) log_weight_kernel(LogWeightParams p) {
  using T = typename Compute<Scalar>::type;
  const int64_t rows = p.steps * p.chains;
  for (int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x; index < rows;
       index += int64_t{gridDim.x} * kThreads) {
    const LogitRow<Scalar> row{static_cast<const Scalar*>(p.class_logits) + index * p.n_classes};
    const Shared<T> shared = shared_terms<Scalar, T>(p, index, row);
    T* out = static_cast<T*>(p.log_weights) + index;
    target_weights(p, shared, row, 0, p.n_targets, [&](int t, T log_weight) { out[t * rows] = log_weight; });
  }
}

template <class T>
__device__ T* weight_field(const LogWeightParams& p, const ScanParams& scan, int field, int t, int64_t chain) {
  return static_cast<T*>(scan.weights) + (int64_t{field} * p.n_targets + t) * p.chains + chain;
}

__device__ inline int32_t* count_field(const LogWeightParams& p, const ScanParams& scan, int field, int t,
                                       int64_t chain) {
  return scan.counts + (int64_t{field} * p.n_targets + t) * p.chains + chain;
}

template <class T>
__device__ Chain<T> load_chain(const LogWeightParams& p, const ScanParams& scan, int t, int64_t chain) {
  return {*weight_field<T>(p, scan, 0, t, chain), *weight_field<T>(p, scan, 1, t, chain),
          *weight_field<T>(p, scan, 2, t, chain), *weight_field<T>(p, scan, 3, t, chain),
          *count_field(p, scan, 0, t, chain),     *count_field(p, scan, 1, t, chain),
          *count_field(p, scan, 2, t, chain)};
}

template <class T>
__device__ void store_chain(const LogWeightParams& p, const ScanParams& scan, int t, int64_t chain,
                            const Chain<T>& state) {
  *weight_field<T>(p, scan, 0, t, chain) = state.log_weight;
  *weight_field<T>(p, scan, 1, t, chain) = state.max_log_weight;
  *weight_field<T>(p, scan, 2, t, chain) = state.sum;
  *weight_field<T>(p, scan, 3, t, chain) = state.sum_of_squares;
  *count_field(p, scan, 0, t, chain) = state.winner;
  *count_field(p, scan, 1, t, chain) = state.accepted;
  *count_field(p, scan, 2, t, chain) = state.supported;
}

// The smallest index wins, whatever the order of arrival.
__device__ inline void note_invalid(const ScanParams& scan, int64_t index) {
  atomicMin(reinterpret_cast<long long*>(scan.invalid), static_cast<long long>(index));
}

// imh_scan: one thread a (target, chain). Bytes per proposal and target: reads one weight.
template <class T>
__global__ void __launch_bounds__(kThreads) imh_scan_kernel(LogWeightParams p, ScanParams scan) {
  const int64_t items = p.n_targets * p.chains;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < items;
       item += int64_t{gridDim.x} * kThreads) {
    const int t = static_cast<int>(item / p.chains);
    const int64_t chain = item % p.chains;
    const T* proposals = static_cast<const T*>(p.log_weights) + int64_t{t} * p.steps * p.chains + chain;
    Chain<T> state = load_chain<T>(p, scan, t, chain);
    for (int64_t step = 0; step < p.steps; ++step) {
      const int32_t global_step = scan.first_step + static_cast<int32_t>(step);
      const T proposal = proposals[step * p.chains];
      if (!valid_log_weight(proposal)) {
        note_invalid(scan, global_step * p.chains + chain);
      }
      const T log_uniform = log(accept_uniform<T>(scan.seed, static_cast<uint64_t>(scan.first_chain + chain),
                                                  static_cast<uint32_t>(global_step)));
      imh_step(state, proposal, log_uniform, global_step);
    }
    store_chain(p, scan, t, chain, state);
  }
}

// s2m_imh_scan. A block owns kChains chains and kTargets targets and walks through the steps kSteps at a time:
//   1. warp s stages the logits of step s in shared memory, widened, with coalesced loads (kStaged);
//   2. 256 threads compute the weights of 8 x 32 proposals, so that few chains still fill the machine;
//   3. one thread a (target, chain) runs the kSteps accept steps, its state in registers.
// Bytes per proposal: reads N + 1 [+ F] logits, writes nothing; more than kTargets targets read them again, from
// the second-level cache as a rule. Per chain and target 28 bytes of state (fp32) are read and written a launch.
constexpr int kChains = 32;
constexpr int kSteps = 8;
constexpr int kTargets = 8;
static_assert(kChains * kSteps == kThreads && kChains * kTargets == kThreads, "one thread a proposal and a chain");
static_assert(kChains == 32, "a warp is one step of the tile");

// Odd, so that the rows that a warp reads side by side lie in different banks.
__host__ __device__ inline int row_stride(int n_classes) { return n_classes | 1; }

template <class T>
struct ScanTile {
  T log_weight[kTargets][kSteps][kChains];
  T log_uniform[kSteps][kChains];
};

template <class Scalar, bool kStaged>
__global__ void __launch_bounds__(kThreads) s2m_imh_scan_kernel(LogWeightParams p, ScanParams scan) {
  using T = typename Compute<Scalar>::type;
  extern __shared__ __align__(16) unsigned char shared_memory[];
  ScanTile<T>& tile = *reinterpret_cast<ScanTile<T>*>(shared_memory);
  T* staged = reinterpret_cast<T*>(shared_memory + sizeof(ScanTile<T>));  // [kSteps * kChains, row_stride]

  const int64_t first_chain = int64_t{blockIdx.x} * kChains;
  const int lanes = static_cast<int>(minimum<int64_t>(kChains, p.chains - first_chain));
  const int first_target = static_cast<int>(blockIdx.y) * kTargets;
  const int n_targets = minimum(kTargets, p.n_targets - first_target);
  const int lane = static_cast<int>(threadIdx.x) % kChains;
  const int slot = static_cast<int>(threadIdx.x) / kChains;  // the thread's step in phase 2, its target in phase 3
  const int64_t chain = first_chain + lane;
  const bool owns_chain = lane < lanes && slot < n_targets;
  const Scalar* logits = static_cast<const Scalar*>(p.class_logits);
  const int stride = row_stride(p.n_classes);
  const int rows_per_hop = kChains / p.n_classes;
  const int columns_per_hop = kChains % p.n_classes;

  Chain<T> state{};
  if (owns_chain) {
    state = load_chain<T>(p, scan, first_target + slot, chain);
  }
  for (int64_t first_step = 0; first_step < p.steps; first_step += kSteps) {
    const int steps = static_cast<int>(minimum<int64_t>(kSteps, p.steps - first_step));
    if constexpr (kStaged) {
      if (slot < steps) {
        const Scalar* source = logits + ((first_step + slot) * p.chains + first_chain) * p.n_classes;
        T* target = staged + slot * kChains * stride;
        int row = lane / p.n_classes;
        int column = lane % p.n_classes;
        for (int e = lane; e < lanes * p.n_classes; e += kChains) {
          target[row * stride + column] = widen(source[e]);
          row += rows_per_hop;
          column += columns_per_hop;
          if (column >= p.n_classes) {
            column -= p.n_classes;
            ++row;
          }
        }
      }
      __syncwarp();  // a warp computes the weights of the rows that it has loaded
    }
    if (slot < steps && lane < lanes) {
      const int64_t index = (first_step + slot) * p.chains + chain;
      const uint32_t global_step = static_cast<uint32_t>(scan.first_step + first_step + slot);
      const auto store = [&](int t, T log_weight) { tile.log_weight[t - first_target][slot][lane] = log_weight; };
      if constexpr (kStaged) {
        const LogitRow<T> row{staged + threadIdx.x * stride};
        const Shared<T> shared = shared_terms<Scalar, T>(p, index, row);
        target_weights(p, shared, row, first_target, first_target + n_targets, store);
      } else {
        const LogitRow<Scalar> row{logits + index * p.n_classes};
        const Shared<T> shared = shared_terms<Scalar, T>(p, index, row);
        target_weights(p, shared, row, first_target, first_target + n_targets, store);
      }
      tile.log_uniform[slot][lane] =
          log(accept_uniform<T>(scan.seed, static_cast<uint64_t>(scan.first_chain + chain), global_step));
    }
    __syncthreads();
    if (owns_chain) {
      for (int s = 0; s < steps; ++s) {
        const int32_t global_step = scan.first_step + static_cast<int32_t>(first_step) + s;
        const T proposal = tile.log_weight[slot][s][lane];
        if (!valid_log_weight(proposal)) {
          note_invalid(scan, global_step * p.chains + chain);
        }
        imh_step(state, proposal, tile.log_uniform[s][lane], global_step);
      }
    }
    __syncthreads();
  }
  if (owns_chain) {
    store_chain(p, scan, first_target + slot, chain, state);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) uniform_kernel(NoiseParams p) {
  for (int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x; r < p.rows; r += int64_t{gridDim.x} * kThreads) {
    static_cast<T*>(p.out)[r] =
        accept_uniform<T>(p.seed, static_cast<uint64_t>(p.chains[r]), static_cast<uint32_t>(p.steps[r]));
  }
}

// One thread a Philox call, four dimensions of one row.
template <class T>
__global__ void __launch_bounds__(kThreads) normal_kernel(NoiseParams p) {
  const int64_t calls_per_row = (p.dim + kNormalsPerCall - 1) / kNormalsPerCall;
  const int64_t calls = p.rows * calls_per_row;
  for (int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x; item < calls;
       item += int64_t{gridDim.x} * kThreads) {
    const int64_t r = item / calls_per_row;
    const int64_t call = item % calls_per_row;
    const Philox random =
        philox(p.seed, static_cast<uint64_t>(p.chains[r]), static_cast<uint32_t>(p.steps[r]),
               kFirstNormalStream + static_cast<uint32_t>(call));
    T normal[kNormalsPerCall];
    box_muller(random.word[0], random.word[1], normal[0], normal[1]);
    box_muller(random.word[2], random.word[3], normal[2], normal[3]);
    T* out = static_cast<T*>(p.out) + r * p.dim;
#pragma unroll
    for (int k = 0; k < kNormalsPerCall; ++k) {
      const int64_t d = call * kNormalsPerCall + k;
      if (d < p.dim) {
        out[d] = normal[k];
      }
    }
  }
}

}  // namespace spml::cuda
