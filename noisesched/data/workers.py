"""Iterators that run ahead in the background, in a thread or in processes, and report quickly whatever dies or hangs there.

Each process writes to a pipe of its own, whose other end closes when it dies, even by kill -9 in the middle of a message. Queues
and events that processes share have locks, and a lock held by a killed process stays locked: `concurrent.futures` then waits
forever. The workers of Grain's `mp_prefetch` (0.2.18) die of the SIGINT and SIGTERM that are sent to all processes of a job, so
that its main process could not make its last steps, and they stay behind when the main process is killed.
"""

import atexit
import multiprocessing
import os
import queue
import signal
import threading

from noisesched.runtime.files import reason


class Fault(RuntimeError):
    """What went wrong in the background, in one line."""


class Ahead:
    """An iterator read one element ahead, by a thread. Close it.

    `iterator` has a `close()`. Raises Fault if `iterator` raises, or yields nothing for `patience` seconds.
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
            raise error if isinstance(error, Fault) else Fault(reason(error)) from error
        return element

    def close(self):
        """Ends the thread and closes the iterator; False if the thread is stuck in it."""
        self._stop.set()
        if hasattr(self._iterator, "kill"):
            self._iterator.kill()
        while self._thread.is_alive() and not self._ready.empty():
            self._ready.get()  # makes room for an element that the thread may be about to put
        self._thread.join(timeout=min(self._patience, 10))
        return not self._thread.is_alive()


class Processes:
    """An iterator over the elements of several iterators in turn, each made by one of `makers` in a process of its own.

    The processes are spawned: the main script needs `if __name__ == "__main__":`. Raises Fault if an iterator raises or a process
    dies.
    """

    def __init__(self, makers):
        context = multiprocessing.get_context("spawn")
        self._turn, self._readers, self._processes = 0, [], []
        for maker in makers:
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(maker, writer), daemon=True)
            process.start()
            writer.close()  # so that only that process holds it
            self._readers.append(reader)
            self._processes.append(process)
        # To run before multiprocessing's own exit handler, which sends SIGTERM and waits for the process to end.
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
            process.kill()  # it only reads, so it leaves nothing half done

    def close(self):
        self.kill()
        for process, reader in zip(self._processes, self._readers, strict=True):
            process.join(timeout=5)
            reader.close()
        atexit.unregister(self.kill)


def _work(make, writer):
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a job: the main one handles them and ends this one
        signal.signal(number, signal.SIG_IGN)
    try:
        for message in _messages(make):
            writer.send(message)
    except OSError:
        pass  # the reader is gone
    except Exception as error:  # for example no memory for the message
        writer.send((None, reason(error)))
    finally:
        os._exit(0)  # without waiting for the iterator's threads


def _messages(make):
    """(element, None) for each element of an iterator, then (None, the fault in one line) if it raises."""
    try:
        for element in make():
            yield element, None
    except Exception as error:
        yield None, reason(error)
