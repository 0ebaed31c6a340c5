"""What ``torchrun`` says of the processes that it has started; a process by itself is the first of one."""

from __future__ import annotations

import os


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", 0))


def local_world_size() -> int:
    """How many there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def local_rank() -> int:
    """Which of those on this machine this is."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first_process() -> bool:
    """Whether this process writes and prints for all."""
    return rank() == 0
