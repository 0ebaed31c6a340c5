// Argument checks, autograd and the choice between CPU and CUDA for the loss ops.
#include "losses/losses.h"

#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_cpu_dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sparse_coo_tensor.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/SymFloat.h>
#include <c10/core/SymInt.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "core/check.h"
#include "losses/elementwise.h"
#include "losses/table.h"

namespace spml {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

enum Reduction : int64_t { kNone, kMean, kSum };

// What a loss takes beside the logits. The schemas in bindings.cpp have the same order.
struct Arguments {
  Tensor labels;
  int64_t kind, loss;
  c10::SmallVector<double, kMaxHyper> hyper;
  double eps;
  int64_t reduction;
  OptionalTensor class_weight;  // (L,)
  OptionalTensor aux;           // (N, L), or a table (R, L) with index
  OptionalTensor index;         // (N,) rows of the table
  OptionalTensor negatives;     // (N,) a column of each row to take as observed negative, -1 none
  OptionalTensor threshold;     // (1,)
  double lam, expected_positives;
  OptionalTensor k_hat;  // (1,) float64
  bool sparse;           // whether the table's gradient is a sparse tensor
  std::vector<Tensor> scheduled;  // in place of the NaNs in hyper: numbers that a compiled graph must read anew
};

#define SPML_ARGUMENT_LIST                                                                                     \
  const Tensor &labels, int64_t kind, int64_t loss, c10::ArrayRef<double> hyper, double eps, int64_t reduction, \
      const OptionalTensor &class_weight, const OptionalTensor &aux, const OptionalTensor &index,              \
      const OptionalTensor &negatives, const OptionalTensor &threshold, double lam, double expected_positives, \
      const OptionalTensor &k_hat, bool sparse, std::optional<at::TensorList> scheduled
#define SPML_ARGUMENTS                                                                                      \
  Arguments {                                                                                               \
    labels, kind, loss, {hyper.begin(), hyper.end()}, eps, reduction, class_weight, aux, index, negatives,  \
        threshold, lam, expected_positives, k_hat, sparse, scheduled.value_or(at::TensorList()).vec()       \
  }

constexpr const char* kOp = "loss";

struct LossTraits {
  bool full_labels, aux;
};

constexpr LossTraits kTraits[kLossCount] = {
#define SPML_TRAITS(name, Functor, eps) {Functor<float>::kFullLabels, Functor<float>::kAux},
    SPML_ELEMENTWISE_LOSSES(SPML_TRAITS)
#undef SPML_TRAITS
};

Element element_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return Element::kFloat32;
    case at::kDouble:
      return Element::kFloat64;
    case at::kHalf:
      return Element::kFloat16;
    case at::kBFloat16:
      return Element::kBFloat16;
    case at::kChar:
      return Element::kInt8;
    case at::kByte:
    case at::kBool:
      return Element::kUInt8;
    case at::kInt:
      return Element::kInt32;
    case at::kLong:
      return Element::kInt64;
    default:
      TORCH_CHECK_TYPE(false, kOp, ": ", name, " has dtype ", t.scalar_type(),
                       "; expected bool, int8, uint8, int32, int64 or a floating-point type");
  }
}

Matrix matrix_of(const Tensor& t, const char* name) {
  return {t.const_data_ptr(), element_of(t, name), t.stride(0), t.stride(1), nullptr, t.size(0)};
}

void check_rows(const Tensor& t, const Tensor& logits, const char* name) {
  check_tensor(t, logits, at::kLong, {logits.size(0)}, kOp, name);
  TORCH_CHECK_VALUE(t.is_contiguous(), kOp, ": ", name, " must be contiguous");
}

// Values of an int64 vector on the CPU; on a GPU the kernels look.
void check_range(const Tensor& t, int64_t lowest, int64_t end, const char* name, const char* meaning) {
  if (!t.is_cpu()) {
    return;
  }
  const int64_t* data = t.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < t.numel(); ++i) {
    TORCH_CHECK_INDEX(data[i] >= lowest && data[i] < end, kOp, ": ", name, "[", i, "] is ", data[i], "; expected ",
                      meaning, " ", lowest, " to ", end - 1);
  }
}

// Labels of logits (N, L); `columns` is L, or more where logits are a chunk.
Labels check_labels(const Tensor& logits, const Tensor& labels, const OptionalTensor& negatives, int64_t columns) {
  Labels view;
  check_device(labels, logits, kOp, "labels");
  const int64_t rows = logits.size(0);
  if (labels.dim() == 1) {
    TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong, kOp, ": labels of shape (N,) hold the class index of each "
                     "row's observed positive and must be int64, got ", labels.scalar_type());
    TORCH_CHECK_VALUE(labels.size(0) == rows, kOp, ": labels has ", labels.size(0), " rows, logits has ", rows);
    TORCH_CHECK_VALUE(labels.is_contiguous(), kOp, ": labels of shape (N,) must be contiguous");
    check_range(labels, -1, columns, "labels", "-1 (none observed) or a class index,");
    view.positives = labels.const_data_ptr<int64_t>();
  } else {
    TORCH_CHECK_VALUE(labels.dim() == 2 && labels.size(0) == rows && labels.size(1) == columns, kOp,
                      ": labels must have shape (", rows, ",) or (", rows, ", ", columns,
                      ") to go with the logits, got ", labels.sizes());
    view.matrix = matrix_of(labels, "labels");
  }
  if (negatives.has_value()) {
    check_rows(*negatives, logits, "negatives");
    check_range(*negatives, -1, columns, "negatives", "-1 (none) or a class index,");
    view.negatives = negatives->const_data_ptr<int64_t>();
  }
  return view;
}

void check_logits(const Tensor& logits, const char* op) {
  dtype_of(logits, op, "logits");
  TORCH_CHECK_VALUE(logits.dim() == 2, op, ": logits must have shape (N, L), got ", logits.sizes());
}

// A label that may not stand where it does, named.
[[noreturn]] void report_invalid(int64_t invalid, const LossParams& p, const Tensor& labels, bool full) {
  const int64_t row = invalid / p.columns;
  const int64_t column = invalid % p.columns + p.first_column;
  const char* expected = full ? "a full label between 0 and 1" : "1 (observed positive), 0 (unobserved) or -1 "
                                                                 "(observed negative)";
  const double value = labels.to(at::kDouble)[row][column].item<double>();
  TORCH_CHECK_VALUE(false, kOp, ": labels[", row, ", ", column, "] is ", value, "; expected ", expected);
}

// What kernels found wrong in earlier calls on the GPU of `t`; looking costs nothing and waits for nothing.
void report_earlier([[maybe_unused]] const Tensor& t) {
#ifdef SPML_WITH_CUDA
  const int64_t invalid = cuda::take_invalid(static_cast<int>(t.get_device()));
  TORCH_CHECK_VALUE(invalid == kNoInvalid, kOp, ": an earlier loss on ", t.device(), " met an invalid ",
                    invalid < 0 ? "index in row " : "label in entry ", invalid < 0 ? -1 - invalid : invalid,
                    invalid < 0 ? "" : " (row * L + column)", "; its value was NaN");
#endif
}

// float16 holds no 1 / (N L): there the mean's gradient is that of the sum until backward multiplies it.
bool lacks_mean(const Tensor& logits, int64_t reduction) {
  return logits.scalar_type() == at::kHalf && reduction == kMean;
}

// A hyper-parameter that stands in a tensor.
double number(const Tensor& t) {
  TORCH_CHECK_VALUE(t.is_cpu() && t.scalar_type() == at::kDouble && t.numel() == 1, kOp,
                    ": a scheduled hyper-parameter must be one float64 on the CPU, got ", t.scalar_type(), " ",
                    t.sizes(), " on ", t.device());
  return *t.const_data_ptr<double>();
}

// The launch of one loss: its parameters, and what must outlive it.
struct Launch {
  LossParams params;
  bool float64 = false;
  bool full_labels = false;
  Tensor class_weight, threshold, k_hat, workspace;  // owned

  void run(const Tensor& logits, const Tensor& labels) {
    if (logits.is_cpu()) {
      int64_t invalid = kNoInvalid;
      params.invalid = &invalid;
      cpu::loss(float64, params);
      if (invalid != kNoInvalid) {
        report_invalid(invalid, params, labels, full_labels);
      }
    } else {
      report_earlier(logits);
      workspace = at::empty({kWorkspaceBytes}, logits.options().dtype(at::kByte));
      params.workspace = workspace.mutable_data_ptr();
      SPML_LAUNCH(logits, loss, float64, params);
    }
  }
};

// `columns`: L of the whole matrix where logits are a chunk of it.
Launch check_loss(const Tensor& logits, const Arguments& a, int64_t columns) {
  check_logits(logits, kOp);
  Launch launch;
  LossParams& p = launch.params;
  const Dtype dtype = dtype_of(logits, kOp, "logits");
  const at::ScalarType compute = compute_type(dtype);
  launch.float64 = dtype == Dtype::kFloat64;
  p.kind = static_cast<LossKind>(a.kind);
  TORCH_CHECK_INDEX(a.kind >= 0 && a.kind <= 2, kOp, ": kind ", a.kind, " is none of 0, 1, 2");
  TORCH_CHECK_INDEX(a.loss >= 0 && a.loss < kLossCount, kOp, ": loss ", a.loss, " is not in 0 to ", kLossCount - 1);
  TORCH_CHECK_VALUE(a.reduction >= kNone && a.reduction <= kSum, kOp, ": reduction ", a.reduction,
                    " is none of 0 (none), 1 (mean), 2 (sum)");
  TORCH_CHECK_VALUE(a.hyper.size() <= kMaxHyper, kOp, ": ", a.hyper.size(), " hyper-parameters, at most ", kMaxHyper);
  const bool role = p.kind == LossKind::kRole;
  p.loss = static_cast<int>(a.loss);
  std::copy(a.hyper.begin(), a.hyper.end(), p.hyper);
  size_t given = 0;
  for (size_t i = 0; i < a.hyper.size() && given < a.scheduled.size(); ++i) {
    if (std::isnan(a.hyper[i])) {
      p.hyper[i] = number(a.scheduled[given++]);
    }
  }
  TORCH_CHECK_VALUE(given == a.scheduled.size(), kOp, ": ", a.scheduled.size(), " scheduled hyper-parameters for ",
                    given, " that are NaN");
  if (p.loss == kLoss_gr && p.hyper[4] == 0 && p.hyper[5] != 0 && p.hyper[5] != 1 && p.hyper[6] == 1) {
    p.loss = kLoss_gr_standard;
  }
  p.eps = a.eps;
  p.rows = logits.size(0);
  p.columns = logits.size(1);
  p.label_columns = columns;
  p.logits = matrix_of(logits, "logits");
  p.element = p.logits.element;
  launch.full_labels = kTraits[p.loss].full_labels && p.kind == LossKind::kElementwise;
  TORCH_CHECK_VALUE(!launch.full_labels || a.labels.dim() == 2, kOp, ": this loss takes full labels of shape (", p.rows,
                    ", ", columns, "); labels of shape (N,) name one positive and leave the rest unknown, for which "
                    "there are losses such as an_loss");
  p.labels = check_labels(logits, a.labels, a.negatives, columns);

  if (a.class_weight.has_value()) {
    TORCH_CHECK_VALUE(a.class_weight->dim() == 1 && a.class_weight->size(0) == columns, kOp,
                      ": class_weight must have shape (", columns, ",), got ", a.class_weight->sizes());
    check_device(*a.class_weight, logits, kOp, "class_weight");
    launch.class_weight = a.class_weight->to(compute).contiguous();
    p.class_weight = launch.class_weight.const_data_ptr();
  }
  const bool reads_aux = p.kind == LossKind::kElementwise && kTraits[p.loss].aux;
  const bool needs_aux = role || (reads_aux && a.loss != kLoss_large_loss);
  TORCH_CHECK_VALUE(a.aux.has_value() || !needs_aux, kOp, ": this loss needs a second matrix beside the labels (table, "
                    "full_labels or pseudo_labels), got none");
  TORCH_CHECK_VALUE(!role || !kTraits[p.loss].aux, kOp,
                    ": a loss that reads a second matrix cannot stand in for ROLE's cross entropy");
  if (a.aux.has_value()) {
    const Tensor& aux = *a.aux;
    check_device(aux, logits, kOp, "aux");
    const int64_t aux_rows = a.index.has_value() && aux.dim() == 2 ? aux.size(0) : p.rows;
    TORCH_CHECK_VALUE(aux.dim() == 2 && aux.size(0) == aux_rows && aux.size(1) == p.columns, kOp,
                      ": the second matrix must have shape (", aux_rows, ", ", p.columns, "), got ", aux.sizes());
    p.aux = matrix_of(aux, "the second matrix");
    TORCH_CHECK_TYPE(!role || aux.scalar_type() == compute, kOp, ": the table must be ", compute, " for logits of ",
                     logits.scalar_type(), ", got ", aux.scalar_type());
    if (a.index.has_value()) {
      check_rows(*a.index, logits, "index");
      check_range(*a.index, 0, aux_rows, "index", "a row of the table,");
      p.aux.index = a.index->const_data_ptr<int64_t>();
    }
  }
  if (a.threshold.has_value()) {
    check_device(*a.threshold, logits, kOp, "threshold");
    TORCH_CHECK_VALUE(a.threshold->numel() == 1, kOp, ": threshold must hold one number");
    launch.threshold = a.threshold->to(compute);
    p.threshold = launch.threshold.const_data_ptr();
  }

  const double entries = static_cast<double>(p.rows) * static_cast<double>(columns);
  const bool later = lacks_mean(logits, a.reduction);
  const bool of_sum = a.reduction == kSum || later;
  p.scale = a.reduction == kMean && !later ? 1.0 / entries : 1.0;
  p.out_scale = later ? 1.0 / entries : 1.0;
  p.expected_positives = a.expected_positives;
  if (a.lam != 0) {
    TORCH_CHECK_VALUE(a.reduction != kNone, kOp, ": the penalty on expected positives is one number for the whole "
                      "batch, so reduction=\"none\" is not defined; use \"mean\" or \"sum\"");
    const double l = static_cast<double>(columns);
    p.penalty = a.lam / (l * l) * (of_sum ? entries : 1.0) * (role ? 0.5 : 1.0);
    p.penalty_slope = 2.0 * p.penalty / static_cast<double>(p.rows);
    if (a.k_hat.has_value()) {
      check_tensor(*a.k_hat, logits, at::kDouble, {role ? 2 : 1}, kOp, "k_hat");
      launch.k_hat = a.k_hat->contiguous();
      p.k_hat = launch.k_hat.const_data_ptr<double>();
    }
  }
  return launch;
}

// at::empty; on the CPU without two rounds through the dispatcher, which a small batch would notice.
Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return options.device().is_cpu() ? at::cpu::empty(sizes, options) : at::empty(sizes, options);
}

// (loss, gradient of the logits, gradient of ROLE's table rows); the gradients only where asked for.
std::tuple<Tensor, Tensor, Tensor> run_loss(const Tensor& logits, const Arguments& a, bool with_grad) {
  Launch launch = check_loss(logits, a, logits.dim() == 2 ? logits.size(1) : 0);
  LossParams& p = launch.params;
  const at::ScalarType compute = launch.float64 ? at::kDouble : at::kFloat;
  const auto options = logits.options();
  Tensor loss, grad, aux_grad;
  if (a.reduction == kNone) {
    loss = empty(logits.sizes(), options);
  } else {
    loss = empty({}, options.dtype(compute));
  }
  const bool role = p.kind == LossKind::kRole;
  grad = empty(with_grad ? logits.sizes() : at::IntArrayRef{0}, options);
  aux_grad = empty(with_grad && role ? logits.sizes() : at::IntArrayRef{0}, options.dtype(compute));
  if (logits.numel() == 0) {
    loss.fill_(a.reduction == kMean ? std::numeric_limits<double>::quiet_NaN() : 0.0);
    return {loss, grad, aux_grad};
  }
  (a.reduction == kNone ? p.values : p.out) = loss.mutable_data_ptr();
  if (with_grad) {
    p.grad = grad.mutable_data_ptr();
    p.aux_grad = role ? aux_grad.mutable_data_ptr() : nullptr;
  }
  launch.run(logits, a.labels);
  return {loss, grad, aux_grad};
}

Tensor loss(const Tensor& logits, SPML_ARGUMENT_LIST) {
  return std::get<0>(run_loss(logits, SPML_ARGUMENTS, /*with_grad=*/false));
}

std::tuple<Tensor, Tensor, Tensor> loss_and_grad(const Tensor& logits, SPML_ARGUMENT_LIST) {
  return run_loss(logits, SPML_ARGUMENTS, /*with_grad=*/true);
}

Tensor sum_probabilities(const Tensor& logits) {
  check_logits(logits, "sum_probabilities");
  Tensor out = at::zeros({1}, logits.options().dtype(at::kDouble));
  if (logits.numel() > 0) {
    LossParams p;
    p.logits = matrix_of(logits, "logits");
    p.rows = logits.size(0);
    p.columns = logits.size(1);
    const Tensor workspace = at::empty({logits.is_cuda() ? kWorkspaceBytes : 0}, logits.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
    SPML_LAUNCH(logits, probability_sum, logits.scalar_type() == at::kDouble, p, out.mutable_data_ptr<double>());
  }
  return out;
}

// --- a linear head and its loss, label chunk by label chunk -------------------------------------------------------

// Bytes of the logits of a chunk: they stay in the last-level cache between the products that share them.
constexpr int64_t kChunkBytes = int64_t{4} << 20;

std::tuple<Tensor, Tensor, Tensor, Tensor> run_linear_loss(const Tensor& x, const Tensor& weight,
                                                           const OptionalTensor& bias, const Arguments& a,
                                                           bool with_grad) {
  const char* op = "fused_linear_loss";
  const Dtype dtype = dtype_of(x, op, "x");
  TORCH_CHECK_VALUE(x.dim() == 2, op, ": x must have shape (N, D), got ", x.sizes());
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(1) == x.size(1), op, ": weight must have shape (L, ", x.size(1),
                    ") for x of shape ", x.sizes(), ", got ", weight.sizes());
  const int64_t rows = x.size(0);
  const int64_t columns = weight.size(0);
  check_tensor(weight, x, x.scalar_type(), weight.sizes(), op, "weight");
  if (bias.has_value()) {
    check_tensor(*bias, x, x.scalar_type(), {columns}, op, "bias");
  }
  TORCH_CHECK_VALUE(a.kind == static_cast<int64_t>(LossKind::kElementwise) && !a.aux.has_value() &&
                    !a.threshold.has_value(), op, ": only losses of one entry at a time, and EPR, can be computed in "
                    "chunks of labels");
  TORCH_CHECK_VALUE(a.reduction != kNone, op, ": reduction=\"none\" would need the logits' whole size");

  const at::ScalarType compute = compute_type(dtype);
  const bool half = compute != x.scalar_type() && dtype != Dtype::kFloat64;
  Tensor loss = at::zeros({}, x.options().dtype(compute));
  Tensor grad_x = at::zeros(with_grad ? x.sizes() : at::IntArrayRef{0}, x.options().dtype(compute));
  const bool nothing = rows == 0 || columns == 0;  // no chunk will write these
  const auto allocate = [&](at::IntArrayRef sizes) {
    return nothing ? at::zeros(sizes, x.options()) : at::empty(sizes, x.options());
  };
  Tensor grad_weight = allocate(with_grad ? weight.sizes() : at::IntArrayRef{0});
  Tensor grad_bias = allocate({with_grad && bias.has_value() ? columns : 0});
  const int64_t chunk = std::min(
      columns, std::max<int64_t>(64, kChunkBytes / std::max<int64_t>(1, rows * x.element_size()) / 64 * 64));
  Tensor buffer = at::empty({rows * chunk}, x.options());
  const auto logits_of = [&](int64_t first, int64_t n) {
    Tensor logits = buffer.narrow(0, 0, rows * n).view({rows, n});
    const Tensor w = weight.narrow(0, first, n).t();
    if (bias.has_value()) {
      at::addmm_out(logits, bias->narrow(0, first, n), x, w);
    } else {
      at::mm_out(logits, x, w);
    }
    return logits;
  };

  Arguments chunked = a;
  if (a.lam != 0 && !a.k_hat.has_value()) {  // every p must be known before the first gradient
    Tensor sum = at::zeros({1}, x.options().dtype(at::kDouble));
    for (int64_t first = 0; first < columns; first += chunk) {
      sum.add_(sum_probabilities(logits_of(first, std::min(chunk, columns - first))));
    }
    chunked.k_hat = sum.div_(static_cast<double>(rows));
  }
  Tensor part = at::empty({}, loss.options());
  for (int64_t first = 0; first < columns || first == 0; first += chunk) {
    const int64_t n = std::min(chunk, columns - first);
    Tensor logits = logits_of(first, n);
    Launch launch = check_loss(logits, chunked, columns);
    LossParams& p = launch.params;
    if (first == 0 && logits.numel() == 0) {
      loss.fill_(a.reduction == kMean ? std::numeric_limits<double>::quiet_NaN() : 0.0);
      break;
    }
    p.first_column = first;
    if (p.labels.matrix.data != nullptr) {
      p.labels.matrix.data = static_cast<const char*>(p.labels.matrix.data) +
                             first * p.labels.matrix.column_stride * a.labels.element_size();
    }
    if (p.class_weight != nullptr) {
      p.class_weight = static_cast<const char*>(p.class_weight) + first * launch.class_weight.element_size();
    }
    p.penalty = first == 0 ? p.penalty : 0;  // once
    p.out = part.mutable_data_ptr();
    p.grad = with_grad ? logits.mutable_data_ptr() : nullptr;  // in place of the logits
    launch.run(logits, a.labels);
    loss.add_(part);
    if (with_grad) {
      const Tensor w = weight.narrow(0, first, n);
      if (half) {
        grad_x.add_(at::mm(logits, w));
      } else {
        grad_x.addmm_(logits, w);
      }
      Tensor grad_w = grad_weight.narrow(0, first, n);
      at::mm_out(grad_w, logits.t(), x);
      if (bias.has_value()) {
        Tensor grad_b = grad_bias.narrow(0, first, n);
        at::sum_out(grad_b, logits, at::IntArrayRef{0});
      }
    }
  }
  return {loss, half ? grad_x.to(x.scalar_type()) : grad_x, grad_weight, grad_bias};
}

Tensor linear_loss(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, SPML_ARGUMENT_LIST) {
  return std::get<0>(run_linear_loss(x, weight, bias, SPML_ARGUMENTS, /*with_grad=*/false));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_loss_and_grad(const Tensor& x, const Tensor& weight,
                                                                const OptionalTensor& bias, SPML_ARGUMENT_LIST) {
  return run_linear_loss(x, weight, bias, SPML_ARGUMENTS, /*with_grad=*/true);
}

// --- what some losses need first ----------------------------------------------------------------------------------

Tensor draw_unobserved(const Tensor& labels, int64_t columns, int64_t seed, const Tensor& step) {
  const char* op = "draw_unobserved";
  TORCH_CHECK_VALUE(columns >= 1, op, ": needs at least one class, got ", columns);
  TORCH_CHECK_VALUE(labels.dim() == 1 || labels.dim() == 2, op, ": labels must have shape (N,) or (N, L), got ",
                    labels.sizes());
  check_tensor(step, labels, at::kLong, {1}, op, "step");
  Tensor out = at::empty({labels.size(0)}, labels.options().dtype(at::kLong));
  if (out.numel() > 0) {
    SelectParams p;
    p.labels = check_labels(out.unsqueeze(1), labels, std::nullopt, columns);
    p.rows = labels.size(0);
    p.columns = columns;
    p.seed = static_cast<uint64_t>(seed);
    p.step = step.const_data_ptr<int64_t>();
    SPML_LAUNCH(labels, draw_unobserved, p, out.mutable_data_ptr<int64_t>());
  }
  return out;
}

SelectParams check_select(const char* op, const Tensor& logits, const Tensor& labels, const OptionalTensor& flips,
                          const OptionalTensor& index) {
  check_logits(logits, op);
  SelectParams p;
  p.rows = logits.size(0);
  p.columns = logits.size(1);
  p.logits = matrix_of(logits, "logits");
  p.labels = check_labels(logits, labels, std::nullopt, p.columns);
  if (flips.has_value()) {
    TORCH_CHECK_VALUE(index.has_value(), op, ": flips needs index");
    check_rows(*index, logits, "index");
    TORCH_CHECK_VALUE(flips->dim() == 2, op, ": flips must have shape (R, ", p.columns, "), got ", flips->sizes());
    check_tensor(*flips, logits, at::kByte, {flips->size(0), p.columns}, op, "flips");
    TORCH_CHECK_VALUE(flips->is_contiguous(), op, ": flips must be contiguous");
    check_range(*index, 0, flips->size(0), "index", "a row of the table,");
    p.flips = matrix_of(*flips, "flips");
    p.flips.index = index->const_data_ptr<int64_t>();
  }
  return p;
}

Tensor large_loss_threshold(const Tensor& logits, const Tensor& labels, const OptionalTensor& flips,
                            const OptionalTensor& index, double share, const OptionalTensor& scheduled) {
  const char* op = "large_loss_threshold";
  SelectParams p = check_select(op, logits, labels, flips, index);
  if (scheduled.has_value()) {
    share = number(*scheduled);
  }
  TORCH_CHECK_VALUE(share >= 0 && share <= 1, op, ": share must be between 0 and 1, got ", share);
  // The product's last bits are rounding, which must not lift 30.000000000000004 to 31.
  p.k = static_cast<int64_t>(std::ceil(static_cast<double>(logits.numel()) * share * (1 - 1e-12)));
  const bool float64 = logits.scalar_type() == at::kDouble;
  Tensor out = at::full({1}, std::numeric_limits<double>::infinity(),
                        logits.options().dtype(float64 ? at::kDouble : at::kFloat));
  if (p.k > 0) {
    const Tensor workspace = at::empty({logits.is_cuda() ? kSelectionBytes : 0}, logits.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
    SPML_LAUNCH(logits, large_loss_threshold, float64, p, out.mutable_data_ptr());
  }
  return out;
}

void flip_labels(const Tensor& logits, const Tensor& labels, const Tensor& flips, const Tensor& index,
                 const Tensor& threshold) {
  const char* op = "flip_labels";
  SelectParams p = check_select(op, logits, labels, flips, index);
  const bool float64 = logits.scalar_type() == at::kDouble;
  check_tensor(threshold, logits, float64 ? at::kDouble : at::kFloat, {1}, op, "threshold");
  p.threshold = threshold.const_data_ptr();
  p.flip_table = flips.mutable_data_ptr<uint8_t>();
  if (logits.numel() > 0) {
    SPML_LAUNCH(logits, flip_labels, float64, p);
  }
}

// --- autograd -----------------------------------------------------------------------------------------------------

using torch::autograd::Node;
using NodePtr = decltype(torch::autograd::Edge::function);  // a shared_ptr, an intrusive_ptr from PyTorch 2.12 on

template <class T>
auto make_node() {
  if constexpr (std::is_same_v<NodePtr, std::shared_ptr<Node>>) {
    return std::make_shared<T>();
  } else {
    return c10::make_intrusive<T>();
  }
}

// How often everything that a loss is computed from has been modified in place.
using Versions = std::array<int64_t, 10>;

int64_t version_of(const OptionalTensor& t) {
  return t.has_value() && !t->is_inference() ? static_cast<int64_t>(t->_version()) : 0;
}

Versions versions_of(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Arguments& a) {
  const bool flips = a.loss == kLoss_large_loss;  // which changes aux after the loss is computed
  return {version_of(x),
          version_of(weight),
          version_of(bias),
          version_of(a.labels),
          version_of(a.class_weight),
          flips ? 0 : version_of(a.aux),
          version_of(a.index),
          version_of(a.negatives),
          version_of(a.threshold),
          version_of(a.k_hat)};
}

template <class T>
void check_unmodified(const T& then, const T& now) {
  TORCH_CHECK(then == now, "a tensor that a loss of spml_fast was computed from has been modified in place, and this "
                           "backward needs it as it was");
}

// The gradients exist when forward returns; backward multiplies them by the incoming gradient, in place.
struct LossBackward : public Node {
  std::vector<Tensor> grads;                          // taken by the first backward
  std::function<std::vector<Tensor>()> compute_anew;  // for every later one, with retain_graph
  bool of_entries = false;                            // reduction "none"
  std::function<Tensor(const Tensor& grad, const Tensor& by)> weigh_entries;  // where it is a row that costs
  std::optional<c10::SymFloat> factor;                // what the gradients still lack
  OptionalTensor index;                               // the second gradient is that of rows of a table
  int64_t index_version = 0;
  int64_t table_rows = 0;
  bool sparse = false;
  bool released = false;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& incoming) override {
    torch::autograd::variable_list out(num_outputs());
    const Tensor& by = incoming[0];
    if (!by.defined()) {
      return out;
    }
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "the losses of spml_fast can be differentiated once: create_graph=True (double backward) is not "
                "supported");
    TORCH_CHECK(!released, "Trying to backward through a loss a second time after its saved tensors were freed. "
                           "Specify retain_graph=True if you need to backward twice.");
    std::vector<Tensor> mine = grads.empty() ? compute_anew() : std::move(grads);
    grads.clear();
    for (size_t i = 0; i < out.size() && i < mine.size(); ++i) {
      if (!task_should_compute_output(i)) {
        continue;
      }
      Tensor grad = std::move(mine[i]);
      const at::ScalarType compute = compute_type(dtype_of(grad, kOp, "gradient"));
      const Tensor scale = factor.has_value() ? at::mul(by.to(compute), c10::Scalar(*factor)) : by;
      if (weigh_entries) {
        grad = weigh_entries(grad, by);
      } else if (of_entries || at::isTensorSubclassLike(grad) || at::isTensorSubclassLike(by)) {
        grad = at::mul(grad, scale).to(grad.scalar_type());
      } else if (grad.numel() > 0) {
        const Tensor number = scale.to(compute);
        SPML_LAUNCH(grad, scale, grad.mutable_data_ptr(), element_of(grad, "gradient"), grad.numel(),
                    number.const_data_ptr(), compute == at::kDouble);
      }
      out[i] = i == 1 && index.has_value() ? table_grad(grad) : grad;
    }
    return out;
  }

  Tensor table_grad(const Tensor& rows) const {
    check_unmodified(index_version, version_of(index));
    const std::vector<int64_t> shape = {table_rows, rows.size(1)};
    if (sparse) {
      return at::sparse_coo_tensor(index->unsqueeze(0), rows, shape, rows.options().layout(at::kSparse));
    }
    if (at::isTensorSubclassLike(rows) || rows.numel() == 0) {
      return at::zeros(shape, rows.options()).index_add(0, *index, rows);
    }
    Tensor table = at::empty(shape, rows.options());
    SPML_LAUNCH(rows, scatter_rows, rows.scalar_type() == at::kDouble, rows.const_data_ptr(),
                index->const_data_ptr<int64_t>(), rows.size(0), rows.size(1), table.mutable_data_ptr(), table_rows);
    return table;
  }

  void release_variables() override {
    grads.clear();
    compute_anew = nullptr;
    released = true;
  }
  std::string name() const override { return "SpmlFastLossBackward"; }
};

// The gradient of pairwise ranking where the cost at each positive i is weighed by by[i], given that for by = 1. There
// the gradient at a label j that is none is p_j (1 - p_j) times the sum of the positives' weights.
Tensor weigh_rankings(const Tensor& grad, const Tensor& by, const Arguments& a) {
  const at::ScalarType compute = compute_type(dtype_of(grad, kOp, "gradient"));
  const Tensor positive = a.labels.dim() == 2
                              ? a.labels.gt(0)
                              : a.labels.unsqueeze(1).eq(at::arange(grad.sym_size(1), a.labels.options()).unsqueeze(0));
  Tensor weight = positive.to(compute);
  if (a.class_weight.has_value()) {
    weight = weight * a.class_weight->to(compute);
  }
  const Tensor before = weight.sum(1, /*keepdim=*/true);
  const Tensor after = (weight * by.to(compute)).sum(1, /*keepdim=*/true);
  const Tensor share = at::where(before.gt(0), after / before, at::zeros_like(before));
  const Tensor out = at::where(positive, grad.to(compute) * by.to(compute), grad.to(compute) * share);
  return out.to(grad.scalar_type()).contiguous();  // labels may have lent it their strides
}

void check_no_tangent(const Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t._fw_grad(/*level=*/0).defined(),
                              "the losses of spml_fast have no forward-mode derivative");
}

// Refuses inputs that require a gradient which no loss gives them.
void check_constants(const Arguments& a) {
  const auto check = [](const Tensor& t, const char* name) {
    TORCH_CHECK_VALUE(!t.requires_grad(), kOp, ": ", name, " requires a gradient, which no loss gives it; pass ", name,
                      ".detach()");
  };
  if (at::GradMode::is_enabled()) {
    check(a.labels, "labels");
    if (a.class_weight.has_value()) {
      check(*a.class_weight, "class_weight");
    }
    if (a.aux.has_value() && a.kind != static_cast<int64_t>(LossKind::kRole)) {
      check(*a.aux, "the second matrix");
    }
  }
}

#define SPML_FORWARD                                                                                        \
  a.labels, a.kind, a.loss, a.hyper, a.eps, a.reduction, a.class_weight, a.aux, a.index, a.negatives,       \
      a.threshold, a.lam, a.expected_positives, a.k_hat, a.sparse, at::TensorList(a.scheduled)

Tensor loss_autograd(const Tensor& logits, SPML_ARGUMENT_LIST) {
  const bool role = kind == static_cast<int64_t>(LossKind::kRole);
  const bool table_learns = role && aux.has_value() && aux->requires_grad();
  const bool differentiate = at::GradMode::is_enabled() && (logits.requires_grad() || table_learns);
  Arguments a = SPML_ARGUMENTS;
  check_no_tangent(logits);
  check_constants(a);
  if (!differentiate) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("spml_fast::loss", "")
                               .typed<decltype(spml::loss)>();
    at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(logits, SPML_FORWARD);
  }
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("spml_fast::loss_and_grad", "")
                             .typed<decltype(spml::loss_and_grad)>();
  auto node = make_node<LossBackward>();
  node->set_next_edges(table_learns ? torch::autograd::collect_next_edges(logits, *aux)
                                    : torch::autograd::collect_next_edges(logits));
  Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [value, grad, aux_grad] = op.call(logits, SPML_FORWARD);
    result = std::move(value);
    node->grads.reserve(2);
    node->grads.push_back(std::move(grad));
    if (table_learns) {
      node->grads.push_back(std::move(aux_grad));
      node->index = index;
      node->index_version = version_of(index);
      node->table_rows = aux->size(0);
      node->sparse = sparse;
    }
  }
  node->of_entries = reduction == kNone;
  if (node->of_entries && kind == static_cast<int64_t>(LossKind::kRanking)) {
    node->weigh_entries = [a, version = version_of(a.labels)](const Tensor& grad, const Tensor& by) {
      check_unmodified(version, version_of(a.labels));
      return weigh_rankings(grad, by, a);
    };
  }
  if (lacks_mean(logits, reduction)) {
    node->factor = c10::SymFloat(1.0) / static_cast<c10::SymFloat>(logits.sym_numel());
  }
  const Versions versions = versions_of(logits, std::nullopt, std::nullopt, a);
  node->compute_anew = [logits, a = std::move(a), versions, table_learns]() -> std::vector<Tensor> {
    check_unmodified(versions, versions_of(logits, std::nullopt, std::nullopt, a));
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [value, grad, aux_grad] = op.call(logits, SPML_FORWARD);
    return table_learns ? std::vector<Tensor>{grad, aux_grad} : std::vector<Tensor>{grad};
  };
  torch::autograd::set_history(result, node);
  return result;
}

Tensor linear_loss_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, SPML_ARGUMENT_LIST) {
  Arguments a = SPML_ARGUMENTS;
  check_no_tangent(x);
  check_no_tangent(weight);
  check_constants(a);
  const bool differentiate =
      at::GradMode::is_enabled() &&
      (x.requires_grad() || weight.requires_grad() || (bias.has_value() && bias->requires_grad()));
  if (!differentiate) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("spml_fast::linear_loss", "")
                               .typed<decltype(spml::linear_loss)>();
    at::AutoDispatchBelowADInplaceOrView guard;
    return op.call(x, weight, bias, SPML_FORWARD);
  }
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("spml_fast::linear_loss_and_grad", "")
                             .typed<decltype(spml::linear_loss_and_grad)>();
  auto node = make_node<LossBackward>();
  node->set_next_edges(bias.has_value() ? torch::autograd::collect_next_edges(x, weight, *bias)
                                        : torch::autograd::collect_next_edges(x, weight));
  Tensor result;
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [value, grad_x, grad_weight, grad_bias] = op.call(x, weight, bias, SPML_FORWARD);
    result = value;
    node->grads = {grad_x, grad_weight, grad_bias};
  }
  if (lacks_mean(x, reduction)) {
    node->factor = c10::SymFloat(1.0) / static_cast<c10::SymFloat>(x.sym_size(0) * weight.sym_size(0));
  }
  const Versions versions = versions_of(x, weight, bias, a);
  node->compute_anew = [x, weight, bias, a = std::move(a), versions]() -> std::vector<Tensor> {
    check_unmodified(versions, versions_of(x, weight, bias, a));
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [value, grad_x, grad_weight, grad_bias] = op.call(x, weight, bias, SPML_FORWARD);
    return {grad_x, grad_weight, grad_bias};
  };
  torch::autograd::set_history(result, node);
  return result;
}

void register_ops(torch::Library& m) {
  m.impl("loss", &loss);
  m.impl("loss_and_grad", &loss_and_grad);
  m.impl("linear_loss", &linear_loss);
  m.impl("linear_loss_and_grad", &linear_loss_and_grad);
  m.impl("sum_probabilities", &sum_probabilities);
  m.impl("draw_unobserved", &draw_unobserved);
  m.impl("large_loss_threshold", &large_loss_threshold);
  m.impl("flip_labels", &flip_labels);
}

}  // namespace

TORCH_LIBRARY_IMPL(spml_fast, CPU, m) { register_ops(m); }
TORCH_LIBRARY_IMPL(spml_fast, CUDA, m) { register_ops(m); }

TORCH_LIBRARY_IMPL(spml_fast, Autograd, m) {
  m.impl("loss", &loss_autograd);
  m.impl("linear_loss", &linear_loss_autograd);
}

}  // namespace spml
