"""Memory that a run takes at its highest, beyond what it returns: in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource, sys, warnings
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
import toys
from spml_fast import Plan, S2MSampler

class Wide(nn.Module):
    z_dim = 4

    def forward(self, z):
        return z[:, :3, None].expand(-1, -1, 1024).contiguous()

class Deep(nn.Module):
    z_dim = 64

    def forward(self, z):
        return 1.5 * z[:, :3]

class Clf(toys.RowwiseClassifier):
    def forward(self, x):
        return super().forward(x.flatten(2)[:, :, 0] if x.ndim > 2 else x)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
warnings.simplefilter("ignore")
sampler = {
    "wide": S2MSampler(Wide(), Clf()),
    "deep": S2MSampler(Deep(), Clf()),
    "conv": S2MSampler(toys.SmallConvGenerator(), toys.SmallConvClassifier(), plan=Plan(batch_size=1024)),
}[sys.argv[2]]
n_samples, n_steps, method = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
sampler.sample(0, 1, 64, 2, seed=0, method=method)
before = peak()
result = sampler.sample(0, 1, n_samples, n_steps, seed=0, method=method)
print(peak() - before, *(part.nbytes / 2**20 for part in (result.samples, result.latents)))
"""


def mib(models, n_samples, n_steps, method="imh"):
    """What the process grew by, and the sizes of samples and latents, in MiB."""
    here = str(Path(__file__).parent)
    arguments = [here, models, str(n_samples), str(n_steps), method]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True)
    return map(float, run.stdout.split())


@pytest.mark.slow
def test_it_does_not_grow_with_the_steps():
    """65,536 chains: under 1 GiB, and no more for three times the steps."""
    few, *_ = mib("conv", 65536, 1)
    more, *_ = mib("conv", 65536, 3)
    assert more < 1024
    assert more < few + 50


@pytest.mark.slow
def test_samples_are_decoded_into_their_place():
    """About 200 MiB of samples."""
    grown, samples, _ = mib("wide", 20_000, 3)
    assert samples > 150
    assert grown < 1.5 * samples


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rejection", "resample"])
def test_stored_weights_are_not_copied(method):
    """Six million of them, and 24 MiB of latents."""
    grown, samples, latents = mib("deep", 100_000, 60, method)
    weights = 100_000 * 60 * 4 / 2**20
    assert latents > 20
    assert grown < 3 * weights + 2 * (samples + latents)


@pytest.mark.slow
def test_a_step_of_many_chains_is_taken_in_batches():
    """Half a million chains; no block is as large as their latents."""
    grown, samples, latents = mib("deep", 500_000, 3)
    assert latents > 100
    assert grown < 2.5 * (samples + latents)
