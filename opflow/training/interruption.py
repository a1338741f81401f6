"""Signals that end a run politely: the step is finished, a last record is yielded, the caller saves and leaves."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """True once SIGTERM, SIGINT (Ctrl-C) or SIGUSR1 has arrived: ``fit(..., stop=interruption)``.

    A second Ctrl-C raises KeyboardInterrupt at once. Outside the main thread, where Python delivers no signals, it
    stays False.

    Attributes:
        exit_code: 128 + the signal's number, which a shell and a scheduler expect (130 for Ctrl-C, 143 for SIGTERM).

    >>> with Interruption() as interruption:
    ...     pass  # for record in fit(..., stop=interruption): save_checkpoint(...)
    >>> interruption()
    False
    """

    SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Has a signal arrived?"""
        return self.received is not None

    @property
    def exit_code(self) -> int:
        """What to leave the process with; 0 if no signal came."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in self.SIGNALS:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
