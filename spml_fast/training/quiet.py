"""Lightning as a function call: nothing printed but the bar, nothing written to the disk."""

from __future__ import annotations

import contextlib
import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)


def quiet_trainer(*, progress: bool, **arguments: Any) -> Any:
    """A ``lightning.Trainer`` on one device without logger, checkpoints, summary or sanity run by default."""
    import lightning
    from lightning.pytorch.callbacks import TQDMProgressBar

    defaults = dict(
        devices=1,
        # The bar's default, every step, would fill a log file and slow small networks down.
        callbacks=[TQDMProgressBar(refresh_rate=50)] if progress else [],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        num_sanity_val_steps=0,
    )
    with _silence():
        return lightning.Trainer(**(defaults | arguments))


def quiet_fit(trainer: Any, module: Any, *loaders: DataLoader, **options: Any) -> bool:
    """``trainer.fit``; whether it ran to its end, so False after Ctrl+C.

    Lightning answers Ctrl+C by ignoring further ones and leaving the process with its work, and SIGTERM by ending
    the training at the next batch, after which the script would go on. A library must do neither: the caller of
    this function decides what to keep after Ctrl+C, and SIGTERM does what it did before the training, which is to
    end the process where nobody has asked for anything else.
    """
    interrupt, terminate = (signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
    watcher = _signal_watcher(terminate)
    trainer.callbacks.append(watcher)
    with _silence():
        try:
            trainer.fit(module, *loaders, **options)
        except SystemExit:
            if trainer.received_sigterm:  # in the moment before the watcher gave the signal back
                _set_handler(signal.SIGTERM, terminate)
                signal.raise_signal(signal.SIGTERM)
            if not watcher.interrupted:
                raise
        finally:
            trainer.callbacks.remove(watcher)
            _set_handler(signal.SIGINT, interrupt)
            _set_handler(signal.SIGTERM, terminate)
    return not watcher.interrupted


def _signal_watcher(terminate: Any) -> Any:
    """A callback that gives SIGTERM back to the handler that it had, and knows whether Ctrl+C ended the training.

    A function makes it, so that Lightning is imported only when needed.
    """
    import lightning

    class SignalWatcher(lightning.Callback):
        interrupted = False

        def on_sanity_check_start(self, trainer: Any, module: Any) -> None:
            _set_handler(signal.SIGTERM, terminate)

        def on_train_start(self, trainer: Any, module: Any) -> None:
            _set_handler(signal.SIGTERM, terminate)

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            self.interrupted = isinstance(exception, KeyboardInterrupt)

    return SignalWatcher()


def _set_handler(number: int, handler: Any) -> None:
    """Sets a signal's handler where it is another; a thread other than the main one finds none changed."""
    if signal.getsignal(number) != handler:
        signal.signal(number, handler)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Advice on workers and loggers; the loaders here have no use for workers.
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def tensor_loader(
    tensors: Sequence[Tensor], batch_size: int, *, shuffle: bool = True, steps: int | None = None
) -> DataLoader:
    """Batches taken from tensors by one indexing each, instead of row by row.

    With ``steps``, one epoch is that many batches drawn with replacement: a training counted in steps is then a
    single epoch and pays the cost of starting an epoch once.
    """
    data = TensorDataset(*tensors)
    if steps is not None:
        rows = RandomSampler(data, replacement=True, num_samples=steps * batch_size)
    elif shuffle:
        rows = RandomSampler(data)
    else:
        rows = SequentialSampler(data)
    # In training a last batch of one row would break batch normalisation.
    batches = BatchSampler(rows, batch_size, drop_last=shuffle and len(rows) > batch_size)
    return DataLoader(data, sampler=batches, batch_size=None)
