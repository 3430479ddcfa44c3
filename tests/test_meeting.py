"""Processes of a job that wait for one another, here as threads: all come, one does not, another program has the port."""

import re
import socket
import threading
import time

import pytest

from noisesched.runtime import meeting


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def met(port, *asked, wait=20.0, num_processes=3):
    """What comes of meet() in each of the processes with these numbers: None, or the words of its error."""
    found = [None] * len(asked)

    def run(index, number):
        try:
            meeting.meet(f"127.0.0.1:{port}", num_processes, number, wait)
        except meeting.ClusterError as error:
            found[index] = str(error)

    threads = [threading.Thread(target=run, args=given, daemon=True) for given in enumerate(asked)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_all_go_once_all_have_come(port, order):
    assert met(port, *order) == [None] * 3
    assert met(port, *order) == [None] * 3  # the port is free again


def test_one_that_never_comes_is_named_to_all(port, capfd, monkeypatch):
    monkeypatch.setattr(meeting, "LATE", 0.05)
    found = met(port, 0, 2, wait=0.5)
    assert found == [f"process 1 of 3 did not come to 127.0.0.1:{port} within 0.5 s (--wait)"] * 2
    assert f"noisesched: process 0 waits at 127.0.0.1:{port} for process" in (said := capfd.readouterr().err)
    assert re.search(r"for process(es)? 1\b.* of 3, for 0.5 s at most", said)


def test_the_first_that_never_comes(port, capfd, monkeypatch):
    monkeypatch.setattr(meeting, "LATE", 0.05)
    (found,) = met(port, 1, wait=0.3)
    assert found.startswith(f"process 0 was not reached at 127.0.0.1:{port} within 0.3 s (--wait): ")
    assert capfd.readouterr().err.startswith(f"noisesched: process 1 of 3 waits for process 0 at 127.0.0.1:{port}, for 0.3 s")


def test_a_host_that_does_not_exist():
    with pytest.raises(meeting.ClusterError, match="process 0 was not reached at nowhere.invalid:1 within 0.2 s"):
        meeting.meet("nowhere.invalid:1", 2, 1, 0.2)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x12\x04\x00", None], ids=str)
def test_another_program_at_the_port_ends_all(port, says, monkeypatch):
    """Silent, talkative, binary, and one that closes at once."""
    monkeypatch.setattr(meeting, "ANSWER", 0.2)
    with socket.create_server(("", port)) as server:

        def serve():
            held = []
            while True:
                try:
                    guest = server.accept()[0]
                except OSError:
                    return
                if says is None:
                    guest.close()
                else:
                    guest.sendall(says)
                    held.append(guest)

        threading.Thread(target=serve, daemon=True).start()
        first, second = met(port, 0, 1, wait=5.0)
    assert first.startswith(f"--coordinator=127.0.0.1:{port}: process 0 cannot listen at port {port}: ")
    assert second == f"what listens at 127.0.0.1:{port} is not process 0 of this job: the port is in use; give another"


def test_two_of_one_number_and_another_count(port):
    first, second, third = met(port, 0, 1, 1, wait=0.5)
    assert first == second and "process 2 of 3 did not come" in first
    assert third == "there is another process with --process_id=1"


def test_processes_that_count_differently(port):
    found = []
    thread = threading.Thread(target=lambda: found.extend(met(port, 0, wait=0.5, num_processes=3)))
    thread.start()
    assert met(port, 1, num_processes=2) == ["process 0 was given --num_processes=3, process 1 2"]
    thread.join()
    assert "did not come" in found[0]


def test_strangers_and_those_who_leave_do_not_count(port):
    """A port scanner, and a process that was stopped and started again while the others waited."""

    def visit():
        for said in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"noisesched 7 3\n",
            b"noisesched one 3\n",
            b"\xff" * 5000,
            b"noisesched 1 3\n",
        ):
            for _ in range(100):
                try:
                    with socket.create_connection(("127.0.0.1", port)) as guest:
                        guest.sendall(said)
                        guest.recv(100)
                        break
                except ConnectionRefusedError:
                    time.sleep(0.02)
                except OSError:
                    break

    visitor = threading.Thread(target=visit)
    visitor.start()
    found = []
    first = threading.Thread(target=lambda: found.extend(met(port, 0)))
    first.start()
    visitor.join(20)
    assert met(port, 2, 1) == [None, None]
    first.join(20)
    assert found == [None]
