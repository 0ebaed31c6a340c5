"""Loads the compiled extension and gives its ops fake kernels; the only file that touches torch.ops."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


def _load_extension() -> ModuleType:
    """The module ``spml_fast._C``, found also when this package is the source folder of a checkout.

    Started in the root of a checkout, Python imports the source folder before the installed package, and the
    source folder holds no compiled extension unless the install is editable. The installed one is used then.
    """
    try:
        from . import _C

        return _C
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError) and "_C" not in str(error):
            raise
    here = Path(__file__).resolve().parent
    folders = (Path(entry or ".", "spml_fast").resolve() for entry in sys.path)
    name = f"{__package__}._C"
    for folder in folders:
        if folder == here or not folder.is_dir():
            continue
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            file = folder / f"_C{suffix}"
            if file.exists():
                spec = importlib.util.spec_from_file_location(name, file)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                sys.modules[name] = module
                return module
    raise ImportError(
        f"the compiled extension of spml_fast was found neither in {here} nor in an installed package; "
        "install it with `pip install .` in the root of the source tree"
    )


extension = _load_extension()
ops = torch.ops.spml_fast

# The overloads, not the packets: resolving a packet costs more than the smallest kernel.
s2m_log_weight = ops.s2m_log_weight.default
imh_scan = ops.imh_scan.default
s2m_imh_scan = ops.s2m_imh_scan.default
philox_uniform = ops.philox_uniform.default
philox_normal = ops.philox_normal.default
loss = ops.loss.default
loss_and_grad = ops.loss_and_grad.default
linear_loss = ops.linear_loss.default
sum_probabilities = ops.sum_probabilities.default
draw_unobserved = ops.draw_unobserved.default
large_loss_threshold = ops.large_loss_threshold.default
flip_labels = ops.flip_labels.default
adam_linear_ = ops.adam_linear_.default
# The op again, called without its schema being interpreted, which takes longer than the loss of a small batch.
# What traces Python (torch.compile) needs the op itself; what traces dispatch sees no difference.
loss_unparsed = extension.loss

losses: dict[str, int] = dict(extension.losses)
"""Numbers of the functors in csrc/losses/table.h, by name."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that kernels use for arithmetic on logits of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.register_fake("spml_fast::s2m_log_weight")
def _(class_logits, validity_logit, fake_logits, log_correction, masks, log_gamma, inv_temperature, cls) -> Tensor:
    shape = (log_gamma.shape[0], class_logits.shape[0])
    return class_logits.new_empty(shape, dtype=compute_dtype(class_logits.dtype))


@torch.library.register_fake("spml_fast::imh_scan")
def _(log_weights, seed, first_chain, first_step, weights, counts, invalid) -> None:
    return None


@torch.library.register_fake("spml_fast::s2m_imh_scan")
def _(class_logits, validity_logit, fake_logits, log_correction, *rest) -> None:
    return None


@torch.library.register_fake("spml_fast::philox_uniform")
def _(chains, steps, seed, *, dtype=None) -> Tensor:
    return chains.new_empty(chains.shape, dtype=dtype or torch.float32)


@torch.library.register_fake("spml_fast::philox_normal")
def _(chains, steps, seed, dim, *, dtype=None) -> Tensor:
    return chains.new_empty((chains.shape[0], dim), dtype=dtype or torch.float32)


def _check_devices(op, like, others) -> None:
    """Refuse tensors on another device than ``like``: one tensor on "meta" sends real ones to a fake kernel."""
    for name, tensor in others.items():
        if isinstance(tensor, Tensor) and tensor.device != like.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {like.device}")


def _loss_value(inputs, reduction, rest, **others) -> Tensor:
    others |= zip(
        ("class_weight", "second_matrix", "index", "negatives", "threshold", "", "", "k_hat"), rest, strict=False
    )
    _check_devices("loss", inputs, others)
    if reduction == 0:
        return torch.empty_like(inputs, memory_format=torch.contiguous_format)
    return inputs.new_empty((), dtype=compute_dtype(inputs.dtype))


@torch.library.register_fake("spml_fast::loss")
def _(logits, labels, kind, loss, hyper, eps, reduction, *rest) -> Tensor:
    return _loss_value(logits, reduction, rest, labels=labels)


@torch.library.register_fake("spml_fast::loss_and_grad")
def _(logits, labels, kind, loss, hyper, eps, reduction, *rest) -> tuple[Tensor, Tensor, Tensor]:
    grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
    table_grad = logits.new_empty(logits.shape if kind == 1 else (0,), dtype=compute_dtype(logits.dtype))
    return _loss_value(logits, reduction, rest, labels=labels), grad, table_grad


@torch.library.register_fake("spml_fast::linear_loss")
def _(x, weight, bias, labels, kind, loss, hyper, eps, reduction, *rest) -> Tensor:
    return _loss_value(x, reduction, rest, weight=weight, bias=bias, labels=labels)


@torch.library.register_fake("spml_fast::linear_loss_and_grad")
def _(x, weight, bias, labels, kind, loss, hyper, eps, reduction, *rest):
    grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, weight)]
    value = _loss_value(x, reduction, rest, weight=weight, bias=bias, labels=labels)
    return value, *grads, x.new_empty((0,)) if bias is None else torch.empty_like(bias)


@torch.library.register_fake("spml_fast::sum_probabilities")
def _(logits) -> Tensor:
    return logits.new_empty((1,), dtype=torch.float64)


@torch.library.register_fake("spml_fast::draw_unobserved")
def _(labels, n_labels, seed, step) -> Tensor:
    return labels.new_empty((labels.shape[0],), dtype=torch.int64)


@torch.library.register_fake("spml_fast::large_loss_threshold")
def _(logits, labels, flips, index, share, scheduled=None) -> Tensor:
    return logits.new_empty((1,), dtype=compute_dtype(logits.dtype))


@torch.library.register_fake("spml_fast::flip_labels")
def _(logits, labels, flips, index, threshold) -> None:
    return None


@torch.library.register_fake("spml_fast::adam_linear_")
def _(weight, exp_avg, exp_avg_sq, grad_logits, x, lr, step, beta1=0.9, beta2=0.999, eps=1e-8) -> None:
    others = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "grad_logits": grad_logits, "x": x, "lr": lr}
    _check_devices("adam_linear_", weight, others)
