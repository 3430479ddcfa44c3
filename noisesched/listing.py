"""A file of numbers: levels, betas or sigmas that a spec names."""

import io
import os
import stat

import numpy as np

from noisesched.spec import shortened

FILE_BYTES = 2**24  # the most of a file: ten times what the longest list takes


def read(path):
    """The numbers of a file, a tuple of floats. ValueError, in one line, for what holds none.

    It may be named by somebody else's config: it is read and nothing more, and only if it is a file of a plausible size, no
    pipe, which would never end, and no device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without waiting for the other end of a pipe
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("Is a directory" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
            if status.st_size > FILE_BYTES:
                raise ValueError(f"it has {status.st_size:,} bytes, more than {FILE_BYTES:,}")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(FILE_BYTES)
        finally:
            os.close(descriptor)
        if path.endswith(".npy"):
            values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False).astype(np.float64, casting="same_kind")
        else:
            values = np.array([float(word) for word in content.decode().replace(",", " ").split()])
    except (OSError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else shortened(" ".join(str(error).split()), 120)
        raise ValueError(f"cannot read numbers from {shortened(path, 200)!r}: {reason}") from None
    return tuple(values.ravel().tolist())
