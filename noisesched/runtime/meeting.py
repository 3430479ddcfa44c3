"""How the processes of a job wait for one another before JAX connects them.

JAX's own waiting says nothing, cannot be interrupted, and takes whatever listens at the coordinator's port for the coordinator.
So they meet there first: process 0 listens, greets whoever comes, and lets all go once all have come. Lines of text over TCP:

    process 0:  noisesched meeting
    another:    noisesched 1 2           its number, and that of all
    process 0:  go                       or the reason why not
"""

import contextlib
import os
import selectors
import socket
import sys
import time

GREETING = "noisesched meeting"
LATE = 10.0  # seconds after which a process that waits says for whom
LINE = 500  # bytes of a line, at most
PAUSE = 0.1  # seconds between two attempts to reach process 0
ANSWER = 10.0  # seconds for a greeting: what listens at the port and says nothing is another program


class ClusterError(RuntimeError):
    """Another process of the job failed, disappeared or did not come; the message is one line."""


def meet(coordinator, num_processes, process_id, wait):
    """Returns in each of the processes once all have come to `coordinator`, "HOST:PORT" of process 0.

    Raises ClusterError, in each that has come, if they have not after `wait` seconds, if the port is another program's, or if two
    have the same number.
    """
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + wait
    if process_id == 0:
        _receive(coordinator, int(port), num_processes, until, wait)
    else:
        _go_to(coordinator, (host.strip("[]"), int(port)), num_processes, process_id, until, wait)


# -- process 0


def _receive(coordinator, port, num_processes, until, wait):
    try:
        server = _listen(port)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if getattr(error, "errno", None) else error
        raise ClusterError(
            f"--coordinator={coordinator}: process 0 cannot listen at port {port}: {why}; give another port"
        ) from None
    late = _Late(wait)
    with server, contextlib.ExitStack() as stack, selectors.DefaultSelector() as waiting:
        waiting.register(server, selectors.EVENT_READ)
        come, texts = {}, {}  # number: connection; connection: what it has said so far
        while missing := [k for k in range(1, num_processes) if k not in come]:
            whom = f"process{'es' if len(missing) > 1 else ''} {_listed(missing)} of {num_processes}"
            if time.monotonic() > until:
                fault = f"{whom} did not come to {coordinator} within {wait:g} s (--wait)"
                _tell(come.values(), fault)
                raise ClusterError(fault)
            late.say(f"process 0 waits at {coordinator} for {whom}")
            for key, _ in waiting.select(PAUSE):
                if key.fileobj is server:
                    with contextlib.suppress(OSError):  # gone already
                        guest = stack.enter_context(server.accept()[0])
                        guest.settimeout(0)
                        texts[guest] = b""
                        waiting.register(guest, selectors.EVENT_READ)
                        _tell([guest], GREETING)
                else:
                    _hear(key.fileobj, texts, come, num_processes, waiting)
        _tell(come.values(), "go")


def _listen(port):
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _hear(guest, texts, come, num_processes, waiting):
    """Reads what a guest says: who it is, or that it is gone."""
    try:
        part = guest.recv(LINE)
    except BlockingIOError:
        return
    except OSError:
        part = b""
    texts[guest] += part
    if part and b"\n" not in texts[guest] and len(texts[guest]) < LINE:
        return
    if not part:  # gone: it, or its successor, may come again
        waiting.unregister(guest)
        guest.close()
        for number in [number for number, each in come.items() if each is guest]:
            del come[number]
        return
    if guest in come.values():
        return
    match texts[guest].partition(b"\n")[0].decode(errors="replace").split():
        case ["noisesched", number, count] if number.isdecimal() and count.isdecimal():
            if int(count) != num_processes:
                fault = f"process 0 was given --num_processes={num_processes}, process {number} {count}"
            elif int(number) in come or not 0 < int(number) < num_processes:
                fault = f"there is another process with --process_id={number}"
            else:
                come[int(number)] = guest
                return
        case _:
            fault = "this is no process of noisesched"
    _tell([guest], fault)
    waiting.unregister(guest)


def _tell(guests, line):
    for guest in guests:
        with contextlib.suppress(OSError):  # gone
            guest.sendall(f"{line}\n".encode())


# -- the others


def _go_to(coordinator, address, num_processes, process_id, until, wait):
    late, strange_since, said = _Late(wait), None, ""
    while True:
        late.say(f"process {process_id} of {num_processes} waits for process 0 at {coordinator}")
        if time.monotonic() > until:
            raise ClusterError(f"process 0 was not reached at {coordinator} within {wait:g} s (--wait){said}")
        try:
            connection = socket.create_connection(address, timeout=max(min(ANSWER, until - time.monotonic()), PAUSE))
        except (OSError, UnicodeError, OverflowError) as error:  # not there yet, or no such host
            said = f": {getattr(error, 'strerror', None) or error}"
            time.sleep(PAUSE)
            continue
        with connection:
            greeting = _line(connection, time.monotonic() + ANSWER, late.say)
            if greeting == GREETING:
                _tell([connection], f"noisesched {process_id} {num_processes}")
                answer = _line(connection, until + ANSWER, late.say)  # process 0 is the first to give up
                if answer == "go":
                    return
                if answer:
                    raise ClusterError(answer)
                said = ": it went away again"
                time.sleep(PAUSE)
                continue
        # Another program, or what is left of a job that has just ended.
        strange_since = strange_since or time.monotonic()
        if time.monotonic() - strange_since >= ANSWER:
            raise ClusterError(f"what listens at {coordinator} is not process 0 of this job: the port is in use; give another")
        time.sleep(PAUSE)


def _line(connection, until, late):
    """The next line that is said, "" if the other end is closed, None if none is said until then."""
    text = b""
    while b"\n" not in text and len(text) < LINE and time.monotonic() < until:
        late()
        connection.settimeout(PAUSE)
        try:
            part = connection.recv(LINE)
        except TimeoutError:
            continue
        except OSError:
            return ""
        if not part:
            return ""
        text += part
    return text.partition(b"\n")[0].decode(errors="replace") if b"\n" in text else None


class _Late:
    """Says on stderr, once it is late and then each minute, what a process waits for."""

    def __init__(self, wait):
        self._next, self._wait, self._what = time.monotonic() + LATE, wait, ""

    def say(self, what=""):
        self._what = what or self._what
        if time.monotonic() > self._next:
            self._next += 60
            print(f"noisesched: {self._what}, for {self._wait:g} s at most (--wait)", file=sys.stderr, flush=True)


def _listed(numbers):
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
