// The one door to Python: the schemas of all ops, and the module that carries them.
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "core/isa.h"

#ifndef SPML_CUDA_ARCHS
#define SPML_CUDA_ARCHS ""
#endif

TORCH_LIBRARY(spml_fast, m) {
  m.def(
      "s2m_log_weight(Tensor class_logits, Tensor validity_logit, Tensor? fake_logits, Tensor? extra, Tensor masks, "
      "Tensor log_gamma, Tensor inv_temperature, int proposal_class) -> Tensor");
  m.def(
      "imh_scan(Tensor log_weights, int seed, int first_chain, int first_step, Tensor(a!) weights, Tensor(b!) counts, "
      "Tensor(c!) invalid) -> ()");
  m.def(
      "s2m_imh_scan(Tensor class_logits, Tensor validity_logit, Tensor? fake_logits, Tensor? extra, Tensor masks, "
      "Tensor log_gamma, Tensor inv_temperature, int proposal_class, int seed, int first_chain, int first_step, "
      "Tensor(a!) weights, Tensor(b!) counts, Tensor(c!) invalid) -> ()");
  m.def("philox_uniform(Tensor chains, Tensor steps, int seed, *, ScalarType? dtype=None) -> Tensor");
  m.def("philox_normal(Tensor chains, Tensor steps, int seed, int dim, *, ScalarType? dtype=None) -> Tensor");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled ops of spml_fast; importing it registers torch.ops.spml_fast.";
  m.def("cpu_isa", [] { return spml::cpu_kernels().name; }, "Instruction set of the CPU kernels in use.");
  m.attr("cuda_archs") = SPML_CUDA_ARCHS;
  m.attr("build_note") = SPML_BUILD_NOTE;
  m.attr("torch_version") = SPML_TORCH_VERSION;
}
