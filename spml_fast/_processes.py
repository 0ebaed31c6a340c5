"""The processes of a job, as ``torchrun`` describes them in the environment; without it there is one."""

from __future__ import annotations

import os


def world_size() -> int:
    """Number of processes of the job."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process, counted from 0."""
    return int(os.environ.get("RANK", 0))


def local_world_size() -> int:
    """Number of processes of the job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process among those on this machine, counted from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first_process() -> bool:
    """Whether this process writes and prints for all."""
    return rank() == 0
