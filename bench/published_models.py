"""Models of the sizes that S2M's authors published: a BigGAN for 32x32 images, and a MobileNetV2 with three heads.

They have random weights. Sizes: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS
2022; blocks: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019, and
Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

N_CLASSES = 3
Z_DIM = 80


class ConditionalNorm(nn.Module):
    """Batch norm whose gain and bias are linear in an embedding (B, E) of latent and class."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, momentum=1.0, affine=False)
        self.gain = nn.Linear(embedding, channels, bias=False)
        self.bias = nn.Linear(embedding, channels, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.norm(x) * (1 + self.gain(embedding))[:, :, None, None] + self.bias(embedding)[:, :, None, None]


class GeneratorBlock(nn.Module):
    """A residual block of BigGAN, which doubles the size of its input unless ``upsample`` is False."""

    def __init__(self, inputs: int, outputs: int, embedding: int, upsample: bool) -> None:
        super().__init__()
        self.upsample = upsample
        self.norm1, self.norm2 = ConditionalNorm(inputs, embedding), ConditionalNorm(outputs, embedding)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.activation(self.norm1(x, embedding))
        if self.upsample:
            h, x = interpolate(h, scale_factor=2), interpolate(x, scale_factor=2)
        h = self.conv2(self.activation(self.norm2(self.conv1(h), embedding)))
        return h + self.shortcut(x)


class BigGAN(nn.Module):
    """z (B, 80) and labels (B,) -> images (B, 3, 32, 32): four residual blocks, the latent cut into five parts.

    Spectral norm, which only training needs, is taken as folded into the weights.
    """

    def __init__(self, channels: int = 96, n_classes: int = N_CLASSES, n_blocks: int = 4) -> None:
        super().__init__()
        self.z_dim = Z_DIM
        self.n_blocks = n_blocks
        part, width = Z_DIM // (n_blocks + 1), 4 * channels
        self.embedding = nn.Embedding(n_classes, 128)
        self.linear = nn.Linear(part, 4 * 4 * width)
        self.blocks = nn.ModuleList(
            GeneratorBlock(width, width, part + 128, upsample=i > 0) for i in range(n_blocks)
        )
        self.head = nn.Sequential(
            nn.BatchNorm2d(width, momentum=1.0),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 3, 3, padding=1),
            nn.Tanh(),
        )
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02) if "linear" in name else nn.init.orthogonal_(weight)
            if "gain" in name or ("blocks" in name and "bias" in name and weight.ndim == 2):
                nn.init.normal_(weight, std=0.02)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        parts = z.chunk(self.n_blocks + 1, dim=1)
        shared = self.embedding(label)
        h = self.linear(parts[0]).view(len(z), -1, 4, 4)
        for block, part in zip(self.blocks, parts[1:], strict=True):
            h = block(h, torch.cat([shared, part], dim=1))
        return self.head(h)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs, momentum=1.0)]


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: wide pointwise, depthwise, narrow pointwise."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = inputs * factor
        layers = [] if factor == 1 else [*_conv(inputs, wide, 1), nn.ReLU6(inplace=True)]
        layers += [*_conv(wide, wide, 3, stride, wide), nn.ReLU6(inplace=True), *_conv(wide, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """Images (B, 3, 32, 32) -> logits of D_r (B, N), of D_f (B, N) and of D_v (B, 1), from one trunk."""

    def __init__(self, n_classes: int = N_CLASSES) -> None:
        super().__init__()
        layers, inputs = [*_conv(3, 32, 3), nn.ReLU6(inplace=True)], 32
        # As for CIFAR: the first strides are 1.
        for factor, outputs, repeats, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, factor))
                inputs = outputs
        layers += [*_conv(inputs, 1280, 1), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.trunk = nn.Sequential(*layers)
        self.D_r, self.D_f, self.D_v = nn.Linear(1280, n_classes), nn.Linear(1280, n_classes), nn.Linear(1280, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.trunk(x)
        return self.D_r(features), self.D_f(features), self.D_v(features)


@torch.no_grad()
def published_models(device: torch.device | str = "cpu") -> tuple[BigGAN, MobileNetV2]:
    """G and clf in eval mode, whose logits vary from image to image as those of trained models do."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G, clf = BigGAN(), MobileNetV2()
        z, label = torch.randn(32, Z_DIM), torch.arange(32) % N_CLASSES
    x = G(z, label)  # still in training mode: sets the statistics of the batch norms
    features = clf.trunk(x)
    for head, spread in ((clf.D_r, 2.0), (clf.D_f, 0.5), (clf.D_v, 1.0)):
        logits = head(features)
        scale = spread / logits.std(dim=0)
        head.bias.copy_((head.bias - logits.mean(dim=0)) * scale)
        head.weight.mul_(scale[:, None])
    return G.eval().to(device), clf.eval().to(device)
