"""The console script ``spml-fast``."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from ._loading import ModelSpec
    from .sampling import Kernel


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        print(
            f"spml-fast {options.command}: {error}; install it with: pip install 'spml-fast[{options.extra}]'",
            file=sys.stderr,
        )
        return 1
    except (OSError, ValueError, TypeError, IndexError, FloatingPointError) as error:
        print(f"spml-fast {options.command}: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        from .sampling import FailedProcessError, LostProcessError

        if not isinstance(error, FailedProcessError | LostProcessError):
            raise
        print(f"spml-fast {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nspml-fast {options.command}: interrupted{options.after_interrupt}", file=sys.stderr)
        return 130
    return 0


NO_LONGER_FLAGS = {
    "--train-mode": "--finetune TRUNK, and --linear beside it for LinearInit",
    "--trunk": "--finetune TRUNK, or --set linear.trunk=TRUNK to train on its features alone",
    "--epochs": "--set linear.epochs=N or --set finetune.epochs=N",
}
"""Flags of earlier versions of ``spml-fast train``, and what to write instead."""


MINMAX = ("gamma", "gamma_J", "temperature", "validity_temperature")
"""Options of the weight that ``spml-fast sample`` has flags for."""


def _no_longer(flag: str, new: str) -> Callable[[str], None]:
    """The type of a flag that there is no more: refuses every value and says the new spelling."""

    def refuse(value: str) -> None:
        raise argparse.ArgumentTypeError(f"there is no {flag} any more; write {new}")

    return refuse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spml-fast", description="Fused losses and S2M sampling for PyTorch.")
    parser.add_argument("--version", action="version", version=f"spml-fast {__version__}")
    parser.set_defaults(extra="demo", after_interrupt="")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="print versions, devices and instruction sets")
    info.set_defaults(run=_info)

    demo = commands.add_parser(
        "demo", help="train a generator and classifiers on 8x8 digits and draw all seven joint classes"
    )
    demo.add_argument("--out", type=Path, default=Path("spml_fast_demo"), help="folder (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    demo.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    demo.set_defaults(run=_demo)

    sample = commands.add_parser(
        "sample",
        help="draw joint classes, with the models of a folder or with your own",
        description="Draw joint classes with the generator and the classifier of DIR, which spml-fast demo or "
        "spml-fast ratio wrote, or with those that are named. Writes grid.png, samples.safetensors and "
        "diagnostics.json.",
        epilog="several joint classes from one pool: --targets A,B A,-C; several processes: torchrun "
        "--nproc-per-node 2 -m spml_fast sample DIR --i A --j B C. Code that DIR/sampler.json names is run.",
    )
    sample.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="folder with sampler.json")
    sample.add_argument("--i", nargs="+", metavar="NAME", help="classes that the samples have, by name or index")
    sample.add_argument("--j", nargs="+", default=[], metavar="NAME", help="classes that they do not have")
    sample.add_argument(
        "--targets",
        nargs="+",
        metavar="A,-B",
        help="several joint classes instead: classes with commas between them, a minus before those that the "
        "samples do not have",
    )
    _add_generator(sample)
    sample.add_argument(
        "--classifier",
        metavar="SPEC",
        help="clf: as --generator, or a folder that spml-fast ratio wrote",
    )
    sample.add_argument("--classifier-weights", type=Path, metavar="FILE", help="as --weights")
    sample.add_argument("--classifier-arg", action="append", default=[], metavar="KEY=VALUE")
    sample.add_argument("--classes", nargs="+", metavar="NAME", help="names of the classes, in order")
    for name in MINMAX:
        flag = f"--{name.lower().replace('_', '-')}"
        sample.add_argument(flag, type=float, metavar="X", help="of the weight (default: DIR's, or 1)")
    sample.add_argument("-n", type=int, default=64, help="number of samples (default: %(default)s)")
    sample.add_argument(
        "--method",
        choices=("imh", "rejection", "resample", "mala"),
        default="imh",
        help="independent chains, rejection or resampling from all proposals, or Langevin steps (default: "
        "%(default)s)",
    )
    sample.add_argument(
        "--steps",
        type=_steps,
        help="steps of each chain, or proposals per sample; auto: until the bound on the distance to the target "
        "is --tol (default: 200, or auto for rejection and resample)",
    )
    sample.add_argument("--tol", type=float, help="bound on the distance for --steps auto (default: 0.01)")
    sample.add_argument(
        "--per-chain",
        type=int,
        metavar="K",
        help="samples that each chain gives (default: 1)",
    )
    sample.add_argument(
        "--thin",
        type=int,
        metavar="STEPS",
        help="from one sample of a chain to the next (default: as many as --steps)",
    )
    sample.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="where the chains are kept as they run; the same command goes on from there after an interruption",
    )
    sample.add_argument("--adapt", action="store_true", help="fit the proposals to the joint class where it pays")
    sample.add_argument("--seed", type=int, default=None, help="default: a new one each time")
    sample.add_argument("--device", default="cpu", help="default: %(default)s")
    sample.add_argument("--single", action="store_true", help="write every sample as a PNG of its own, too")
    sample.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: samples_..., in DIR if there is one)"
    )
    sample.set_defaults(run=_sample)

    ratio = commands.add_parser(
        "ratio",
        help="train the classifiers that sampling needs: from your generator, images and single labels",
        description="Train D_v (real or generated) and D_r (which class) from a generator, a folder of images and "
        "a CSV with one label per image. Writes a folder that spml-fast sample reads. Images are resized, "
        "whatever their proportions, to the size and the channels of the generator's and brought to its range.",
        epilog="example: spml-fast ratio --generator models.py:Decoder --weights decoder.pt --images photos "
        "--labels labels.csv --out ratio",
    )
    _add_generator(ratio, required=True)
    ratio.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images")
    ratio.add_argument(
        "--labels",
        type=Path,
        required=True,
        metavar="CSV",
        help="columns file, relative to --images, and label, by name or index: the one class that the image is "
        "known to have",
    )
    ratio.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    ratio.add_argument(
        "--classes", nargs="+", metavar="NAME", help="names of the classes, in order (default: the labels, sorted)"
    )
    ratio.add_argument(
        "--trunk",
        metavar="SPEC",
        help="one network under linear heads: small_cnn, a model of torchvision, or a callable as --generator "
        "(default: a small network for each head)",
    )
    ratio.add_argument("--flip", action="store_true", help="flip half of the images, left to right, in training")
    ratio.add_argument(
        "--noise",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="noise on pixels in training, a share of the range; more makes generated images harder to tell, and "
        "weights smaller (default: %(default)s)",
    )
    ratio.add_argument("--epochs", type=int, default=100, help="at most (default: %(default)s)")
    ratio.add_argument(
        "--patience",
        type=int,
        default=10,
        help="stop after so many epochs without a better held-out likelihood (default: %(default)s)",
    )
    ratio.add_argument("--batch-size", type=int, default=128, help="default: %(default)s")
    ratio.add_argument("--lr", type=float, default=1e-3, help="default: %(default)s")
    ratio.add_argument("--weight-decay", type=float, default=1e-2, help="default: %(default)s")
    ratio.add_argument("--holdout", type=float, default=0.2, help="share held out (default: %(default)s)")
    ratio.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    ratio.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    ratio.add_argument("--quiet", action="store_true", help="no progress bar")
    ratio.set_defaults(run=_ratio, after_interrupt=" before there was anything to keep")

    train = commands.add_parser(
        "train",
        help="train a multi-label classifier from single positive labels",
        description="Train a multi-label classifier from single positive labels. Settings come from CONFIG.yaml, "
        "flags override them. An interrupted run continues when the same command is given again.",
        epilog="example: spml-fast train --data digits --loss gr --out runs/digits",
    )
    train.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="settings; see the README")
    train.add_argument("--data", metavar="LOADER", help="digits, mulan, arrays, formatted, voc2012, coco2014, ...")
    train.add_argument("--loss", help="gr, role, an, ... (default: gr)")
    train.add_argument(
        "--finetune",
        metavar="TRUNK",
        help="tune a trunk end to end: small_cnn, a model of torchvision, or package.module:function",
    )
    train.add_argument(
        "--linear",
        action="store_true",
        help="with --finetune, a linear phase on the trunk's features first (LinearInit)",
    )
    for name, new in NO_LONGER_FLAGS.items():
        train.add_argument(name, type=_no_longer(name, new), help=argparse.SUPPRESS)
    train.add_argument("--seed", type=int, help="default: 0")
    train.add_argument("--accelerator", help="auto, cpu, gpu, ... (default: auto)")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, e.g. --set linear.lr=[0.01,0.001] --set data.folder=mulan --set loss.alpha=0.1",
    )
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    train.add_argument("--restart", action="store_true", help="start anew instead of continuing the run in DIR")
    train.add_argument("--quiet", action="store_true", help="no progress bars")
    train.set_defaults(run=_train, extra="train", after_interrupt="; the same command continues")

    evaluate = commands.add_parser("evaluate", help="measure the classifier of a finished run again")
    evaluate.add_argument("folder", type=Path, metavar="RUN", help="folder that spml-fast train wrote")
    evaluate.add_argument("--data", metavar="LOADER", help="other data than the run's own")
    evaluate.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="options of those data: data.folder=..."
    )
    evaluate.set_defaults(run=_evaluate, extra="train")
    return parser


def _add_generator(command: argparse.ArgumentParser, required: bool = False) -> None:
    """The flags that name a generator."""
    command.add_argument(
        "--generator",
        required=required,
        metavar="SPEC",
        help="G: package.module:callable or path/to/file.py:callable, which returns the module",
    )
    command.add_argument(
        "--weights", type=Path, metavar="FILE", help="its weights: safetensors, or a state dict of torch.save"
    )
    command.add_argument(
        "--generator-arg", action="append", default=[], metavar="KEY=VALUE", help="an argument of the callable"
    )
    command.add_argument(
        "--z-dim", type=int, nargs="+", metavar="N", help="size or shape of a latent, where G has no z_dim"
    )
    command.add_argument(
        "--range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of black and white (default: -1 1 or 0 1, whichever fits what G generates)",
    )


def _train(options: argparse.Namespace) -> None:
    if options.restart:
        options.after_interrupt = "; the same command without --restart continues"
    from ._processes import is_first_process
    from .training.config import apply_setting, parse_setting, read_config, run_config, summary

    config = {} if options.config is None else read_config(options.config)
    for name in ("data", "loss", "seed", "accelerator"):
        value = getattr(options, name)
        if value is not None:
            config[name] = value
    if options.linear and config.get("linear") is None:
        config["linear"] = {}
    if options.finetune is not None:
        apply_setting(config, ["finetune", "trunk"], options.finetune)
    for text in options.set:
        apply_setting(config, *parse_setting(text))
    result = run_config(config, options.out, resume=not options.restart, progress=not options.quiet)
    if is_first_process():
        print(f"{summary(result.metrics)}\nreport          {options.out / 'report.html'}")


def _evaluate(options: argparse.Namespace) -> None:
    from .training.config import apply_setting, evaluate_run, parse_setting

    config = {"data": options.data}
    for text in options.set:
        path, value = parse_setting(text)
        if path[0] != "data":
            raise ValueError(f"--set {text}: only the data can be set; the rest is the run's own")
        apply_setting(config, path, value)
    result = evaluate_run(options.folder, config["data"])
    width = max(map(len, result["ap"]), default=0)
    for name, value in sorted(result["ap"].items(), key=lambda item: -item[1]):
        print(f"{name:<{width}} {100 * value:6.2f}")
    print(f"{'mAP':<{width}} {100 * result['map']:6.2f} on {result['n']} instances")


def _steps(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _info(options: argparse.Namespace) -> None:
    import torch

    from ._ops import extension

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = {
        "spml-fast": __version__,
        "extension": extension.__file__,
        "build": extension.build_note,
        "built against": f"PyTorch {extension.torch_version}",
        "CUDA architectures": extension.cuda_archs or "none",
        "CPU instruction set": f"{extension.cpu_isa()}, {torch.get_num_threads()} threads",
        "PyTorch": torch.__version__,
        "CUDA devices": ", ".join(devices) or "none",
        "Python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name, value in rows.items():
        print(f"{name:<20} {value}")


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(options.out, seed=options.seed, device=options.device)


def _method(options: argparse.Namespace) -> Kernel:
    """The sampling method with the options that were given."""
    from .sampling import IMH, MALA, Rejection, Resample

    method, known = {
        "imh": (IMH, ("tol", "samples_per_chain", "thin")),
        "rejection": (Rejection, ("tol",)),
        "resample": (Resample, ("tol",)),
        "mala": (MALA, ("samples_per_chain", "thin")),
    }[options.method]
    flags = {"tol": "--tol", "samples_per_chain": "--per-chain", "thin": "--thin"}
    given = {"tol": options.tol, "samples_per_chain": options.per_chain, "thin": options.thin}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in known:
            raise ValueError(f"--method {options.method} has no {flags[name]}")
    return method(**given)


def _z_dim(options: argparse.Namespace) -> int | list[int] | None:
    z_dim = options.z_dim
    return z_dim[0] if z_dim is not None and len(z_dim) == 1 else z_dim


def _given_model(options: argparse.Namespace, name: str, weights: str) -> ModelSpec:
    """The callable, its arguments and its weights, as the flags of a model give them; "" for no callable."""
    from ._loading import ModelSpec, parse_arguments

    arguments = parse_arguments(getattr(options, f"{name}_arg"), f"--{name}-arg")
    return ModelSpec(getattr(options, name) or "", arguments, getattr(options, weights))


def _given_range(options: argparse.Namespace) -> tuple[float, float] | None:
    from .sample_folder import checked_range

    return None if options.range is None else checked_range(options.range)


def _ratio(options: argparse.Namespace) -> None:
    from ._loading import checked_device
    from .ratio import Augment, read_labels, train_ratio
    from .training.options import DensityRatioFit

    names = ("epochs", "patience", "batch_size", "lr", "weight_decay", "holdout")
    fit = DensityRatioFit(
        accelerator="cpu" if checked_device(options.device).type == "cpu" else "gpu",
        **{name: getattr(options, name) for name in names},
    )
    train_ratio(
        _given_model(options, "generator", "weights"),
        read_labels(options.labels, options.images, options.classes),
        options.out,
        fit=fit,
        trunk=options.trunk,
        augment=Augment(options.noise, options.flip),
        value_range=_given_range(options),
        z_dim=_z_dim(options),
        seed=options.seed,
        progress=not options.quiet,
    )


def _sample(options: argparse.Namespace) -> None:
    from .sample_folder import SamplerSpec, draw, parse_target
    from .sampling import Mixture

    if (options.i is None) == (options.targets is None) or (options.targets and options.j):
        raise ValueError("name one joint class with --i and --j, or several with --targets")
    weight = {name: getattr(options, name.lower()) for name in MINMAX}
    spec = SamplerSpec.of(
        options.folder,
        _given_model(options, "generator", "weights"),
        _given_model(options, "classifier", "classifier_weights"),
        weight={name: value for name, value in weight.items() if value is not None},
        classes=None if options.classes is None else tuple(options.classes),
        z_dim=_z_dim(options),
        value_range=_given_range(options),
    )
    draw(
        spec,
        [(options.i, options.j)] if options.targets is None else list(map(parse_target, options.targets)),
        options.out,
        beside=options.folder or ".",
        device=options.device,
        checkpoint=options.checkpoint,
        single=options.single,
        n_samples=options.n,
        n_steps=options.steps,
        method=_method(options),
        proposal=Mixture() if options.adapt else None,
        seed=options.seed,
    )


if __name__ == "__main__":
    sys.exit(main())
