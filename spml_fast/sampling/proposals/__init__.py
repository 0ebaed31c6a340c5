"""Proposals: where latents come from, and how their density differs from the prior's."""

from .given import DrawLatents, DrawnProposal, GivenLatents
from .latent_prior import LatentPrior, TruncatedNormal
from .mixture import LatentMixture, Mixture, MixtureProposal
from .prior import PriorProposal, Proposal, Regenerated

__all__ = [
    "DrawLatents",
    "DrawnProposal",
    "GivenLatents",
    "LatentMixture",
    "LatentPrior",
    "Mixture",
    "MixtureProposal",
    "PriorProposal",
    "Proposal",
    "Regenerated",
    "TruncatedNormal",
]
