"""Work done in a forked child: what crashes, hangs or limits itself there leaves the test process alone."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def _main(pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...], seconds: int) -> None:
    signal.alarm(seconds)
    try:
        pipe.send((True, function(*args)))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


def in_child(function: Callable[..., Any], *args: Any, seconds: int = 30) -> Any:
    """The result of ``function(*args)`` in a forked child; an exception, a crash or a hang there fails the test."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_main, args=(theirs, function, args, seconds))
    child.start()
    theirs.close()
    try:
        ok, result = ours.recv()
    except EOFError:
        child.join()
        raise AssertionError(f"the child ended with exit code {child.exitcode} and no result") from None
    child.join()
    assert ok, result
    return result


def limit_file_size(size: int) -> None:
    """From here on this process cannot write files larger than `size`: a full disk, for a test."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def peak_memory() -> int:
    """The most memory this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
