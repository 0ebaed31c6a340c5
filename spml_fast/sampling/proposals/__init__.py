"""Proposals: where latents come from, and how their density differs from the prior's."""

from .given import DrawLatents, DrawnProposal, GivenLatents
from .mixture import LatentMixture, Mixture, MixtureProposal
from .prior import PriorProposal, Proposal, Regenerated

__all__ = [
    "DrawLatents",
    "DrawnProposal",
    "GivenLatents",
    "LatentMixture",
    "Mixture",
    "MixtureProposal",
    "PriorProposal",
    "Proposal",
    "Regenerated",
]
