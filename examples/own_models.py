"""A generator of your own and a folder of images, from the command line: makes both, and prints the two commands.

    pip install ".[train]"
    python examples/own_models.py

Stands for what you have: a generator, here the decoder of a small VAE on 8x8 digits, whose class is in this file
and whose weights are in another; images as PNG files; and a CSV that says one attribute of each image: A, B or C.
The two commands need nothing else: ``spml-fast ratio`` trains the classifiers, ``spml-fast sample`` draws.

Digits 0 to 6 stand for the seven joint classes of three attributes, so the picture tells if samples are right.
Its rows are 0 to 5. Having all three (--i A B C) excludes nothing and wants --temperature 0.2, as in the demo.
"""

import argparse
import csv
import shlex
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from spml_fast.data.digits import ATTRIBUTES, load_digits
from spml_fast.labels import single_positives


class Decoder(nn.Module):
    """z (B, z_dim) -> images (B, 1, 8, 8) in [-1, 1]. All that is asked of a generator is z_dim and forward(z)."""

    def __init__(self, z_dim: int = 8, width: int = 256):
        super().__init__()
        self.z_dim = z_dim
        layers: list[nn.Module] = []
        for before in (z_dim, width, width):
            layers += [nn.Linear(before, width), nn.BatchNorm1d(width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


def train_vae(images: Tensor, steps: int, kl_weight: float = 4.0) -> Decoder:
    """The decoder of a VAE on the images alone."""
    decoder = Decoder()
    encoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 256),
        nn.SiLU(),
        nn.Linear(256, 256),
        nn.SiLU(),
        nn.Linear(256, 2 * decoder.z_dim),
    )
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(steps):
        x = images[torch.randint(len(images), (64,))]
        centre, log_variance = encoder(x).chunk(2, dim=1)
        z = centre + (log_variance / 2).exp() * torch.randn_like(centre)
        kl = (centre.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        loss = x[0].numel() / 2 * (decoder(z) - x).square().mean().log() + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="batches of the VAE")
    parser.add_argument("--out", type=Path, default=Path("own_models"), metavar="FOLDER")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    digits = load_digits()
    labels = single_positives(digits.labels, seed=0)  # one attribute of each image, drawn among those that it has

    (args.out / "images").mkdir(parents=True, exist_ok=True)
    with open(args.out / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for i, (image, label) in enumerate(zip(digits.images, labels, strict=True)):
            pixels = ((image[0] + 1) * 127.5).round().astype("uint8")
            Image.fromarray(pixels).save(args.out / "images" / f"{i:04d}.png")
            table.writerow([f"{i:04d}.png", ATTRIBUTES[label]])

    decoder = train_vae(torch.from_numpy(digits.images), args.steps)
    save_file(decoder.state_dict(), args.out / "decoder.safetensors")

    out = shlex.quote(str(args.out))
    print(f"{len(labels)} images, labels.csv and decoder.safetensors are in {args.out}/. Now:\n")
    print(
        f"spml-fast ratio --generator {shlex.quote(__file__)}:Decoder --weights {out}/decoder.safetensors \\\n"
        f"  --images {out}/images --labels {out}/labels.csv --out {out}/ratio"
    )
    targets = "A,-B,-C A,B,-C B,-A,-C B,C,-A C,-A,-B A,C,-B"
    print(f"spml-fast sample {out}/ratio --targets {targets} -n 64 --out {out}/samples")


if __name__ == "__main__":
    main()
