"""An iterator run ahead in the background, so that whatever dies or stands still there, its reader is told, and soon.

A thread, or processes. Each process writes to a pipe of its own, whose other end closes when it dies: by kill -9, and in the
middle of a message, too. Queues and events that processes share have locks, and one that a killed process held stays locked: of
such are `concurrent.futures.ProcessPoolExecutor` and Grain's `mp_prefetch`, which wait for it for ever.
"""

import atexit
import multiprocessing
import os
import queue
import signal
import threading


class Fault(RuntimeError):
    """What happened in the background, in one line. `stuck`: something still runs there that cannot be ended."""

    stuck = False


class Ahead:
    """An iterator read one element ahead, by a thread. Close it.

    `iterator` has a `close()`. Raises Fault where `iterator` raises, and if it gives nothing for `patience` seconds.
    """

    def __init__(self, iterator, patience):
        self._iterator, self._patience = iterator, patience
        self._ready, self._stop = queue.Queue(maxsize=1), threading.Event()
        self._thread = threading.Thread(target=self._run, name="noisesched-ahead", daemon=True)
        self._thread.start()

    def _run(self):
        try:
            while not self._stop.is_set():
                self._ready.put((next(self._iterator), None))
        except Exception as error:
            if not self._stop.is_set():
                self._ready.put((None, error))
        finally:
            self._iterator.close()

    def __next__(self):
        try:
            element, error = self._ready.get(timeout=self._patience)
        except queue.Empty:
            raise Fault(f"nothing was read for {self._patience:g} s") from None
        if error is not None:
            raise error if isinstance(error, Fault) else Fault(line(error)) from error
        return element

    def close(self):
        self._stop.set()
        if hasattr(self._iterator, "kill"):
            self._iterator.kill()
        while self._thread.is_alive() and not self._ready.empty():
            self._ready.get()  # makes room for what the thread may be about to put there
        self._thread.join(timeout=min(self._patience, 10))
        return not self._thread.is_alive()


class Processes:
    """What the iterators that `makers` make would yield in turn, each iterator in a process of its own (spawned: the main script
    needs its `if __name__ == "__main__":`). Raises Fault where one of them raises, and when one dies."""

    def __init__(self, makers):
        context = multiprocessing.get_context("spawn")
        self._turn, self._readers, self._processes = 0, [], []
        for maker in makers:
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(maker, writer), daemon=True)
            process.start()
            writer.close()  # now that process alone holds it
            self._readers.append(reader)
            self._processes.append(process)
        # Before multiprocessing's own, which sends a SIGTERM, and waits for the end of the process.
        atexit.register(self.kill)

    def __next__(self):
        turn, self._turn = self._turn, (self._turn + 1) % len(self._readers)
        try:
            element, fault = self._readers[turn].recv()
        except (EOFError, OSError):
            raise Fault(f"an input worker process died{self._cause(turn)}") from None
        if fault is not None:
            raise Fault(fault)
        return element

    def _cause(self, turn):
        process = self._processes[turn]
        process.join(timeout=5)
        code = process.exitcode
        if code is None or code >= 0:
            return f" (process {process.pid}, exit code {code})"
        hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f" (process {process.pid}, by signal {-code}, {signal.Signals(-code).name}{hint})"

    def kill(self):
        for process in self._processes:
            process.kill()  # it only reads: there is nothing that it could leave half done

    def close(self):
        self.kill()
        for process, reader in zip(self._processes, self._readers, strict=True):
            process.join(timeout=5)
            reader.close()
        atexit.unregister(self.kill)


def _work(make, writer):
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a job: its main process sees to them, and ends this one
        signal.signal(number, signal.SIG_IGN)
    try:
        for message in _messages(make):
            writer.send(message)
    except OSError:
        pass  # nobody reads any more
    except Exception as error:  # no memory for the message, say
        writer.send((None, line(error)))
    finally:
        os._exit(0)  # without waiting for the iterator's threads


def _messages(make):
    """(element, None) of an iterator, and (None, what went wrong) if something does."""
    try:
        for element in make():
            yield element, None
    except Exception as error:
        yield None, line(error)


def line(error):
    """An exception in one line."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return (str(error) or type(error).__name__).splitlines()[0]
