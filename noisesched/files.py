"""Files written whole or not at all, and read with suspicion."""

import contextlib
import io
import os
import pathlib
import stat

from etils import epath


class WriteError(RuntimeError):
    """Something of a run could not be written: a full disk, a bucket that refuses. The message is one line."""


@contextlib.contextmanager
def writing(path: os.PathLike):
    """Turns an OSError into a WriteError that names the path."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
    """An open binary file that takes the place of `path`, local or in a bucket, when the context is left.

    A kill or a power cut leaves the old content or the new, never a part; an exception leaves the old. An OSError names the path.
    """
    if not is_local(path):
        yield (content := io.BytesIO())
        epath.Path(path).write_bytes(content.getvalue())  # a bucket shows an object only once it is complete
        return
    path = pathlib.Path(os.fspath(path))
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # what a killed process left, or a link, which opening would follow
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)  # a full disk does not say which file
        raise
    with contextlib.suppress(OSError):  # some network disks know no such thing
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # makes the rename itself durable
        finally:
            os.close(directory)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Replaces a file by a text; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def read_file(path: str | os.PathLike, most: int) -> bytes:
    """The content of a file of at most so many bytes. ValueError for a larger one, and for a pipe, a device or a folder."""
    path = epath.Path(path)
    if not is_local(path):
        if path.stat().length > most:
            raise ValueError(f"it has {path.stat().length:,} bytes, more than {most:,}")
        return path.read_bytes()
    # Opened without waiting for the other end of a pipe; asked of what was opened, which no other process can exchange.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size:,} bytes, more than {most:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def is_local(path: str | os.PathLike) -> bool:
    return "://" not in str(path)
