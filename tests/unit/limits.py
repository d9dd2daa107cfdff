"""What tests take away from a process for a moment."""

import contextlib
import resource


@contextlib.contextmanager
def file_size_limit(limit):
    """The kernel refuses to let any file grow past `limit` bytes, as a full disk would in mid-write."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
