"""The console script ``spml-fast``."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from ._version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ModuleNotFoundError as error:
        print(
            f"spml-fast {options.command}: {error}; install it with: pip install 'spml-fast[demo]'",
            file=sys.stderr,
        )
        return 1
    except (FileNotFoundError, ValueError) as error:
        print(f"spml-fast {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="spml-fast", description="Fused losses and S2M sampling for PyTorch.")
    parser.add_argument("--version", action="version", version=f"spml-fast {__version__}")
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

    sample = commands.add_parser("sample", help="draw more from a folder that the demo wrote")
    sample.add_argument("folder", type=Path, metavar="DIR")
    sample.add_argument("--i", nargs="+", required=True, metavar="NAME", help="attributes that the samples have")
    sample.add_argument("--j", nargs="+", default=[], metavar="NAME", help="attributes that they do not have")
    sample.add_argument("-n", type=int, default=64, help="number of samples (default: %(default)s)")
    sample.add_argument("--steps", type=int, default=200, help="steps of each chain (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=None, help="default: a new one each time")
    sample.add_argument("--device", default="cpu", help="default: %(default)s")
    sample.add_argument("--out", type=Path, help="picture to write, an .npz beside it (default: in DIR)")
    sample.set_defaults(run=_sample)
    return parser


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


def _sample(options: argparse.Namespace) -> None:
    from .demo import draw_again

    draw_again(
        options.folder,
        options.i,
        options.j,
        n_samples=options.n,
        n_steps=options.steps,
        seed=options.seed,
        device=options.device,
        out=options.out,
    )


if __name__ == "__main__":
    sys.exit(main())
