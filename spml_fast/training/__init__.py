"""Training: so far the density-ratio classifiers D_v, D_r and D_f."""

from .density_ratio import DensityRatio, DensityRatioClassifier, DensityRatioReport, train_density_ratio

__all__ = ["DensityRatio", "DensityRatioClassifier", "DensityRatioReport", "train_density_ratio"]
