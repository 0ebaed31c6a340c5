// Argument checks of the sampling ops, and the choice between CPU and CUDA.
#include "sampling/sampling.h"

#include <limits>
#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "core/check.h"
#include "sampling/imh.h"

namespace spml {
namespace {

using at::Tensor;

void check_state(const Tensor& t, const Tensor& like, at::ScalarType type, at::IntArrayRef shape, const char* op,
                 const char* name) {
  check_tensor(t, like, type, shape, op, name);
  TORCH_CHECK_VALUE(t.is_contiguous(), op, ": ", name, " is written in place and must be contiguous");
}

const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

// Everything that a log weight is computed from. The optional tensors are owned here so that contiguous copies
// outlive the launch.
struct LogWeightInputs {
  Tensor class_logits, validity_logit;
  std::optional<Tensor> fake_logits, log_correction;
  Tensor masks, log_gamma, inv_temperature;
  Dtype dtype;
  LogWeightParams params;
};

LogWeightInputs check_inputs(const char* op, const Tensor& class_logits, const Tensor& validity_logit,
                             const std::optional<Tensor>& fake_logits, const std::optional<Tensor>& log_correction,
                             const Tensor& masks, const Tensor& log_gamma, const Tensor& inv_temperature,
                             int64_t proposal_class, int64_t batch_dims) {
  TORCH_CHECK_VALUE(class_logits.dim() == batch_dims + 1 && class_logits.size(-1) >= 1, op,
                    ": class_logits must have ", batch_dims + 1, " dimensions, the last one the classes, got shape ",
                    class_logits.sizes());
  const Dtype dtype = dtype_of(class_logits, op, "class_logits");
  const at::ScalarType storage = class_logits.scalar_type();
  const at::ScalarType compute = compute_type(dtype);
  const at::IntArrayRef batch = class_logits.sizes().slice(0, batch_dims);
  const int64_t n_classes = class_logits.size(-1);
  check_tensor(validity_logit, class_logits, storage, batch, op, "validity_logit");
  TORCH_CHECK_VALUE(log_gamma.dim() == 2 && log_gamma.size(0) >= 1, op,
                    ": log_gamma must have shape [targets, classes], got ", log_gamma.sizes());
  const int64_t n_targets = log_gamma.size(0);
  const int64_t words = (n_classes + 63) / 64;
  check_tensor(log_gamma, class_logits, compute, {n_targets, n_classes}, op, "log_gamma");
  check_tensor(masks, class_logits, at::kLong, {n_targets, 2, words}, op, "masks");
  check_tensor(inv_temperature, class_logits, compute, {n_targets, 2}, op, "inv_temperature");
  int64_t n_fake = 0;
  if (fake_logits.has_value()) {
    TORCH_CHECK_VALUE(fake_logits->dim() == batch_dims + 1, op, ": fake_logits must have ", batch_dims + 1,
                      " dimensions, got shape ", fake_logits->sizes());
    n_fake = fake_logits->size(-1);
    std::vector<int64_t> shape = batch.vec();
    shape.push_back(n_fake);
    check_tensor(*fake_logits, class_logits, storage, shape, op, "fake_logits");
    TORCH_CHECK_INDEX(0 <= proposal_class && proposal_class < n_fake, op, ": proposal_class ", proposal_class,
                      " is outside the ", n_fake, " classes of fake_logits");
  }
  if (log_correction.has_value()) {
    check_tensor(*log_correction, class_logits, compute, batch, op, "log_correction");
  }

  LogWeightInputs in{class_logits.contiguous(), validity_logit.contiguous(), fake_logits, log_correction,
                     masks.contiguous(), log_gamma.contiguous(), inv_temperature.contiguous(), dtype, {}};
  if (fake_logits.has_value()) {
    in.fake_logits = fake_logits->contiguous();
  }
  if (log_correction.has_value()) {
    in.log_correction = log_correction->contiguous();
  }
  LogWeightParams& p = in.params;
  p.class_logits = in.class_logits.const_data_ptr();
  p.validity_logit = in.validity_logit.const_data_ptr();
  p.fake_logits = data_or_null(in.fake_logits);
  p.log_correction = data_or_null(in.log_correction);
  p.masks = in.masks.const_data_ptr<int64_t>();
  for (int64_t row = 0; masks.is_cpu() && row < 2 * n_targets; ++row) {  // on a GPU, looking would mean waiting
    const uint64_t last_word = static_cast<uint64_t>(p.masks[row * words + words - 1]);
    TORCH_CHECK_INDEX(n_classes % 64 == 0 || last_word >> (n_classes % 64) == 0, op,
                      ": masks name a class beyond the ", n_classes, " of class_logits");
  }
  p.log_gamma = in.log_gamma.const_data_ptr();
  p.inv_temperature = in.inv_temperature.const_data_ptr();
  p.steps = batch_dims == 2 ? batch[0] : 1;
  p.chains = batch.back();
  p.n_classes = static_cast<int>(n_classes);
  p.n_fake_classes = static_cast<int>(n_fake);
  p.n_targets = static_cast<int>(n_targets);
  p.words = static_cast<int>(words);
  p.proposal_class = static_cast<int>(proposal_class);
  return in;
}

ScanParams check_scan(const char* op, const Tensor& like, const LogWeightParams& p, at::ScalarType compute,
                      int64_t seed, int64_t first_chain, int64_t first_step, const Tensor& weights,
                      const Tensor& counts, const Tensor& invalid) {
  check_state(weights, like, compute, {kChainWeights, p.n_targets, p.chains}, op, "weights");
  check_state(counts, like, at::kInt, {kChainCounts, p.n_targets, p.chains}, op, "counts");
  check_state(invalid, like, at::kLong, {1}, op, "invalid");
  TORCH_CHECK_VALUE(first_chain >= 0, op, ": first_chain must not be negative, got ", first_chain);
  TORCH_CHECK_VALUE(first_step >= 0 && first_step + p.steps <= std::numeric_limits<int32_t>::max(), op,
                    ": steps ", first_step, " to ", first_step + p.steps, " are outside 0 to 2^31 - 1");
  ScanParams scan{};
  scan.weights = weights.mutable_data_ptr();
  scan.counts = counts.mutable_data_ptr<int32_t>();
  scan.invalid = invalid.mutable_data_ptr<int64_t>();
  scan.seed = static_cast<uint64_t>(seed);
  scan.first_chain = first_chain;
  scan.first_step = static_cast<int32_t>(first_step);
  return scan;
}

Tensor s2m_log_weight(const Tensor& class_logits, const Tensor& validity_logit,
                      const std::optional<Tensor>& fake_logits, const std::optional<Tensor>& log_correction,
                      const Tensor& masks, const Tensor& log_gamma, const Tensor& inv_temperature,
                      int64_t proposal_class) {
  LogWeightInputs in = check_inputs("s2m_log_weight", class_logits, validity_logit, fake_logits, log_correction, masks,
                                    log_gamma, inv_temperature, proposal_class, /*batch_dims=*/1);
  Tensor out = at::empty({in.params.n_targets, in.params.chains},
                         class_logits.options().dtype(compute_type(in.dtype)));
  if (out.numel() > 0) {
    in.params.log_weights = out.mutable_data_ptr();
    SPML_LAUNCH(class_logits, s2m_log_weight, in.dtype, in.params);
  }
  return out;
}

void s2m_imh_scan(const Tensor& class_logits, const Tensor& validity_logit, const std::optional<Tensor>& fake_logits,
                  const std::optional<Tensor>& log_correction, const Tensor& masks, const Tensor& log_gamma,
                  const Tensor& inv_temperature, int64_t proposal_class, int64_t seed, int64_t first_chain,
                  int64_t first_step, const Tensor& weights, const Tensor& counts, const Tensor& invalid) {
  const char* op = "s2m_imh_scan";
  LogWeightInputs in = check_inputs(op, class_logits, validity_logit, fake_logits, log_correction, masks, log_gamma,
                                    inv_temperature, proposal_class, /*batch_dims=*/2);
  const ScanParams scan = check_scan(op, class_logits, in.params, compute_type(in.dtype), seed, first_chain,
                                     first_step, weights, counts, invalid);
  if (in.params.steps > 0 && in.params.chains > 0) {
    SPML_LAUNCH(class_logits, s2m_imh_scan, in.dtype, in.params, scan);
  }
}

void imh_scan(const Tensor& log_weights, int64_t seed, int64_t first_chain, int64_t first_step, const Tensor& weights,
              const Tensor& counts, const Tensor& invalid) {
  const char* op = "imh_scan";
  TORCH_CHECK_VALUE(log_weights.dim() == 3, op, ": log_weights must have shape [targets, steps, chains], got ",
                    log_weights.sizes());
  const at::ScalarType type = log_weights.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, op, ": log_weights must be float32 or float64, got ",
                   type);
  const Tensor input = log_weights.contiguous();
  LogWeightParams p{};
  p.log_weights = const_cast<void*>(input.const_data_ptr());
  p.n_targets = static_cast<int>(input.size(0));
  p.steps = input.size(1);
  p.chains = input.size(2);
  const ScanParams scan =
      check_scan(op, log_weights, p, type, seed, first_chain, first_step, weights, counts, invalid);
  if (input.numel() > 0) {
    SPML_LAUNCH(log_weights, imh_scan, dtype_of(input, op, "log_weights"), p, scan);
  }
}

NoiseParams noise_params(const Tensor& chains, const Tensor& steps, int64_t seed, int64_t dim,
                        const Tensor& out) {
  NoiseParams p{};
  p.chains = chains.const_data_ptr<int64_t>();
  p.steps = steps.const_data_ptr<int64_t>();
  p.out = out.mutable_data_ptr();
  p.rows = chains.numel();
  p.dim = dim;
  p.seed = static_cast<uint64_t>(seed);
  return p;
}

Tensor noise_output(const char* op, const Tensor& chains, const Tensor& steps, at::IntArrayRef shape,
                    std::optional<at::ScalarType> dtype) {
  TORCH_CHECK_VALUE(chains.dim() == 1, op, ": chains must have shape [rows], got ", chains.sizes());
  check_tensor(chains, chains, at::kLong, chains.sizes(), op, "chains");
  check_tensor(steps, chains, at::kLong, chains.sizes(), op, "steps");
  const at::ScalarType type = dtype.value_or(at::kFloat);
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, op, ": dtype must be float32 or float64, got ", type);
  return at::empty(shape, chains.options().dtype(type));
}

Tensor philox_uniform(const Tensor& chains, const Tensor& steps, int64_t seed, std::optional<at::ScalarType> dtype) {
  const char* op = "philox_uniform";
  Tensor out = noise_output(op, chains, steps, {chains.numel()}, dtype);
  const Tensor c = chains.contiguous();
  const Tensor s = steps.contiguous();
  if (out.numel() > 0) {
    SPML_LAUNCH(chains, philox_uniform, dtype_of(out, op, "out"), noise_params(c, s, seed, 1, out));
  }
  return out;
}

Tensor philox_normal(const Tensor& chains, const Tensor& steps, int64_t seed, int64_t dim,
                     std::optional<at::ScalarType> dtype) {
  const char* op = "philox_normal";
  TORCH_CHECK_VALUE(dim >= 1 && dim < (int64_t{1} << 33), op, ": dim must be between 1 and 2^33, got ", dim);
  Tensor out = noise_output(op, chains, steps, {chains.numel(), dim}, dtype);
  const Tensor c = chains.contiguous();
  const Tensor s = steps.contiguous();
  if (out.numel() > 0) {
    SPML_LAUNCH(chains, philox_normal, dtype_of(out, op, "out"), noise_params(c, s, seed, dim, out));
  }
  return out;
}

void register_ops(torch::Library& m) {
  m.impl("s2m_log_weight", &s2m_log_weight);
  m.impl("s2m_imh_scan", &s2m_imh_scan);
  m.impl("imh_scan", &imh_scan);
  m.impl("philox_uniform", &philox_uniform);
  m.impl("philox_normal", &philox_normal);
}

}  // namespace

TORCH_LIBRARY_IMPL(spml_fast, CPU, m) { register_ops(m); }
TORCH_LIBRARY_IMPL(spml_fast, CUDA, m) { register_ops(m); }

// The sampler needs no gradients; whoever asks for one gets an error instead of zeros.
TORCH_LIBRARY_IMPL(spml_fast, Autograd, m) {
  for (const char* op : {"s2m_log_weight", "s2m_imh_scan", "imh_scan"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace spml
