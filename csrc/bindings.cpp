// The one door to Python: the schemas of all ops, and the module that carries them.
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "core/isa.h"
#include "losses/table.h"

#ifndef SPML_CUDA_ARCHS
#define SPML_CUDA_ARCHS ""
#endif

// What every loss takes beside its inputs: csrc/losses/losses.cpp, Arguments.
#define SPML_LOSS_ARGUMENTS                                                                                        \
  "Tensor labels, int kind, int loss, float[] hyper, float eps, int reduction, Tensor? class_weight=None, "        \
  "Tensor? aux=None, Tensor? index=None, Tensor? negatives=None, Tensor? threshold=None, float lam=0.0, "          \
  "float expected_positives=0.0, Tensor? k_hat=None, bool sparse=False, Tensor[]? scheduled=None"

TORCH_LIBRARY(spml_fast, m) {
  m.def(
      "s2m_log_weight(Tensor class_logits, Tensor validity_logit, Tensor? fake_logits, Tensor? log_correction, "
      "Tensor masks, Tensor log_gamma, Tensor inv_temperature, int proposal_class) -> Tensor");
  m.def(
      "imh_scan(Tensor log_weights, int seed, int first_chain, int first_step, Tensor(a!) weights, Tensor(b!) counts, "
      "Tensor(c!) invalid) -> ()");
  m.def(
      "s2m_imh_scan(Tensor class_logits, Tensor validity_logit, Tensor? fake_logits, Tensor? log_correction, "
      "Tensor masks, Tensor log_gamma, Tensor inv_temperature, int proposal_class, int seed, int first_chain, "
      "int first_step, Tensor(a!) weights, Tensor(b!) counts, Tensor(c!) invalid) -> ()");
  m.def("loss(Tensor logits, " SPML_LOSS_ARGUMENTS ") -> Tensor");
  m.def("loss_and_grad(Tensor logits, " SPML_LOSS_ARGUMENTS ") -> (Tensor, Tensor, Tensor)");
  m.def("linear_loss(Tensor x, Tensor weight, Tensor? bias, " SPML_LOSS_ARGUMENTS ") -> Tensor");
  m.def(
      "linear_loss_and_grad(Tensor x, Tensor weight, Tensor? bias, " SPML_LOSS_ARGUMENTS
      ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("sum_probabilities(Tensor logits) -> Tensor");
  m.def("draw_unobserved(Tensor labels, int n_labels, int seed, Tensor step) -> Tensor");
  m.def("large_loss_threshold(Tensor logits, Tensor labels, Tensor? flips, Tensor? index, float share, "
      "Tensor? scheduled=None) -> Tensor");
  m.def("flip_labels(Tensor logits, Tensor labels, Tensor(a!) flips, Tensor index, Tensor threshold) -> ()");
  m.def(
      "adam_linear_(Tensor(a!) weight, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor grad_logits, Tensor x, "
      "Tensor lr, int step, float beta1=0.9, float beta2=0.999, float eps=1e-8) -> ()");
  m.def("philox_uniform(Tensor chains, Tensor steps, int seed, *, ScalarType? dtype=None) -> Tensor");
  m.def("philox_normal(Tensor chains, Tensor steps, int seed, int dim, *, ScalarType? dtype=None) -> Tensor");
}

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// torch.ops.spml_fast.loss without the interpretation of its schema, which takes longer than the loss of a small batch.
Tensor loss(const Tensor& logits, const Tensor& labels, int64_t kind, int64_t loss, const std::vector<double>& hyper,
            double eps, int64_t reduction, const OptionalTensor& class_weight, const OptionalTensor& aux,
            const OptionalTensor& index, const OptionalTensor& negatives, const OptionalTensor& threshold, double lam,
            double expected_positives, const OptionalTensor& k_hat, bool sparse,
            const std::optional<std::vector<Tensor>>& scheduled) {
  using Op = Tensor(const Tensor&, const Tensor&, int64_t, int64_t, c10::ArrayRef<double>, double, int64_t,
                    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                    const OptionalTensor&, double, double, const OptionalTensor&, bool, std::optional<at::TensorList>);
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("spml_fast::loss", "").typed<Op>();
  return op.call(logits, labels, kind, loss, hyper, eps, reduction, class_weight, aux, index, negatives, threshold, lam,
                 expected_positives, k_hat, sparse,
                 scheduled.has_value() ? std::optional<at::TensorList>(*scheduled) : std::nullopt);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled ops of spml_fast; importing it registers torch.ops.spml_fast.";
  m.def("loss", torch::wrap_pybind_function_no_gil(loss));
  m.def("cpu_isa", [] { return spml::cpu_kernels().name; }, "Instruction set of the CPU kernels in use.");
  pybind11::dict losses;
#define SPML_NAME(name, Functor, eps) losses[#name] = static_cast<int>(spml::kLoss_##name);
  SPML_ELEMENTWISE_LOSSES(SPML_NAME)
#undef SPML_NAME
  m.attr("losses") = losses;
  m.attr("cuda_archs") = SPML_CUDA_ARCHS;
  m.attr("build_note") = SPML_BUILD_NOTE;
  m.attr("torch_version") = SPML_TORCH_VERSION;
}
