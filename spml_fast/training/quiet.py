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
    """Runs ``trainer.fit``; returns whether it ran to its end, which is False after Ctrl+C.

    Lightning answers Ctrl+C by ignoring further ones and ending the process. After SIGTERM it ends the training at
    the next batch, and the script would go on. A library must do neither. The caller decides what to keep after
    Ctrl+C; SIGTERM does what it did before the training, which is to end the process at once unless the user has a
    handler of their own.
    """
    interrupt, terminate = (signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))
    watcher = _signal_watcher(terminate)
    trainer.callbacks.append(watcher)
    with _silence():
        try:
            trainer.fit(module, *loaders, **options)
        except SystemExit:
            if trainer.received_sigterm:  # it came before the watcher gave the handler back
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
    """A callback that gives SIGTERM its handler back, and knows whether Ctrl+C ended the training.

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
    """Sets the handler of a signal unless it is the same already, as it always is outside the main thread."""
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
            # They advise workers and loggers; the loaders here have no use for workers.
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def tensor_loader(
    tensors: Sequence[Tensor], batch_size: int, *, shuffle: bool = True, steps: int | None = None
) -> DataLoader:
    """A loader that takes each batch from tensors by one indexing, instead of row by row.

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
    # In training, batch normalisation would fail on a last batch of one row.
    batches = BatchSampler(rows, batch_size, drop_last=shuffle and len(rows) > batch_size)
    return DataLoader(data, sampler=batches, batch_size=None)
