// Argument checks of the training ops, and the choice between CPU and CUDA.
#include "training/training.h"

#include <cmath>

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "core/check.h"

namespace spml {
namespace {

using at::Tensor;

constexpr const char* kOp = "adam_linear_";

void check_separate(const Tensor& t, const char* name, const Tensor& written, const char* written_name) {
  const at::MemOverlapStatus overlap = at::get_overlap_status(t, written);
  TORCH_CHECK_VALUE(overlap == at::MemOverlapStatus::No || overlap == at::MemOverlapStatus::TooHard, kOp, ": ", name,
                    " shares memory with ", written_name, ", which is written in place");
}

void check_beta(double beta, const char* name) {
  TORCH_CHECK_VALUE(beta >= 0 && beta < 1, kOp, ": ", name, " must be at least 0 and less than 1, got ", beta);
}

void adam_linear_(const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& grad_logits,
                  const Tensor& x, const Tensor& lr, int64_t step, double beta1, double beta2, double eps) {
  const at::ScalarType type = weight.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, kOp, ": weight must be float32 or float64, got ", type);
  TORCH_CHECK_VALUE(weight.dim() == 2, kOp, ": weight must have shape (K, D), got ", weight.sizes());
  TORCH_CHECK_VALUE(x.dim() == 2, kOp, ": x must have shape (N, D), got ", x.sizes());
  const int64_t rows = weight.size(0);
  const int64_t columns = weight.size(1);
  const int64_t batch = x.size(0);
  check_tensor(exp_avg, weight, type, weight.sizes(), kOp, "exp_avg");
  check_tensor(exp_avg_sq, weight, type, weight.sizes(), kOp, "exp_avg_sq");
  check_tensor(x, weight, type, {batch, columns}, kOp, "x");
  check_tensor(grad_logits, weight, type, {batch, rows}, kOp, "grad_logits");
  check_tensor(lr, weight, type, {rows}, kOp, "lr");
  const struct {
    const Tensor& tensor;
    const char* name;
  } written[] = {{weight, "weight"}, {exp_avg, "exp_avg"}, {exp_avg_sq, "exp_avg_sq"}},
    read[] = {{grad_logits, "grad_logits"}, {x, "x"}, {lr, "lr"}};
  for (const auto& state : written) {
    TORCH_CHECK_VALUE(state.tensor.is_contiguous(), kOp, ": ", state.name,
                      " is written in place and must be contiguous");
    for (const auto& other : written) {
      if (&other != &state) {
        check_separate(other.tensor, other.name, state.tensor, state.name);
      }
    }
    for (const auto& other : read) {
      check_separate(other.tensor, other.name, state.tensor, state.name);
    }
  }
  TORCH_CHECK_VALUE(step >= 1, kOp, ": step counts updates from 1, got ", step);
  check_beta(beta1, "beta1");
  check_beta(beta2, "beta2");
  TORCH_CHECK_VALUE(eps >= 0, kOp, ": eps must not be negative, got ", eps);
  if (weight.numel() == 0) {
    return;
  }

  const Tensor features = x.stride(1) == 1 || columns == 1 ? x : x.contiguous();
  AdamLinearParams p{};
  p.weight = weight.mutable_data_ptr();
  p.exp_avg = exp_avg.mutable_data_ptr();
  p.exp_avg_sq = exp_avg_sq.mutable_data_ptr();
  p.grad_logits = grad_logits.const_data_ptr();
  p.x = features.const_data_ptr();
  p.lr = lr.const_data_ptr();
  p.rows = rows;
  p.columns = columns;
  p.batch = batch;
  p.grad_batch_stride = grad_logits.stride(0);
  p.grad_row_stride = grad_logits.stride(1);
  p.x_stride = features.stride(0);
  p.lr_stride = lr.stride(0);
  p.beta1 = beta1;
  p.beta2 = beta2;
  p.eps = eps;
  p.correction1 = 1 - std::pow(beta1, static_cast<double>(step));
  p.correction2 = 1 - std::pow(beta2, static_cast<double>(step));
  SPML_LAUNCH(weight, adam_linear_, dtype_of(weight, kOp, "weight"), p);
}

// An op on data, as optimizers are: no derivative, but what autograd saved of the three is known to have changed.
void adam_linear_in_place(const Tensor& weight, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                          const Tensor& grad_logits, const Tensor& x, const Tensor& lr, int64_t step, double beta1,
                          double beta2, double eps) {
  if (at::GradMode::is_enabled()) {
    const auto check = [](const Tensor& t, const char* name) {
      TORCH_CHECK(!t.requires_grad(), kOp, ": ", name,
                  " requires grad, but this op has no derivative; call it under torch.no_grad()");
    };
    check(weight, "weight");
    check(exp_avg, "exp_avg");
    check(exp_avg_sq, "exp_avg_sq");
    check(grad_logits, "grad_logits");
    check(x, "x");
    check(lr, "lr");
  }
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("spml_fast::adam_linear_", "")
                             .typed<decltype(spml::adam_linear_)>();
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.call(weight, exp_avg, exp_avg_sq, grad_logits, x, lr, step, beta1, beta2, eps);
  }
  for (const Tensor& t : {weight, exp_avg, exp_avg_sq}) {
    torch::autograd::impl::bump_version(t);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(spml_fast, CPU, m) { m.impl("adam_linear_", &adam_linear_); }
TORCH_LIBRARY_IMPL(spml_fast, CUDA, m) { m.impl("adam_linear_", &adam_linear_); }
TORCH_LIBRARY_IMPL(spml_fast, Autograd, m) { m.impl("adam_linear_", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(spml_fast, ADInplaceOrView, m) { m.impl("adam_linear_", &adam_linear_in_place); }

}  // namespace spml
