"""Data sets as single-positive problems: loaders, which return :class:`Splits` of :class:`MultiLabelData`."""

from .arff_files import mulan
from .array_files import arrays, formatted
from .base import (
    MultiLabelData,
    Splits,
    check_features,
    check_labels_observed,
    check_rows_observed,
    check_training,
)
from .cifar import cifar10, cifar_7to3
from .digits import digit_attributes
from .generated import synthetic
from .image_sets import coco2014, voc2012
from .images import ImageFiles
from .registry import load

__all__ = [
    "ImageFiles",
    "MultiLabelData",
    "Splits",
    "arrays",
    "check_features",
    "check_labels_observed",
    "check_rows_observed",
    "check_training",
    "cifar10",
    "cifar_7to3",
    "coco2014",
    "digit_attributes",
    "formatted",
    "load",
    "mulan",
    "synthetic",
    "voc2012",
]
