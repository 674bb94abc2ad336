"""One process at a time where several may come to write the same directory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the lock of a path; another process that wants it waits, and logs that.

    The lock is the file ``.<name>.lock`` beside the path, which need not exist. It ends
    with its process, however that ends.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logging.info("%s: another process works there; waiting for its end", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
