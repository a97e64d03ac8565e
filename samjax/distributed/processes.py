"""Start and end of a job of several processes, with messages that name the processes that are missing.

JAX alone names none: if a process does not come, or process 0 cannot be reached, its C++ ends the process after twice
the timeout with a stack trace, before Python sees an error.  So the processes meet first, on the port that JAX takes
over afterwards: process 0 listens, each other process connects, sends a line and waits for a line.

    samjax 3 8 gpu02        to process 0: this is process 3 of 8, on gpu02
    samjax all here         from process 0; or, after the name, the sentence that every process ends with

At the timeout process 0 knows which processes are connected, and sends them the names of the others.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from samjax.errors import SamjaxError

HELLO = re.compile(rb'samjax (\d+) (\d+) (\S+)\n')
ALL_HERE = 'all here'
ADDRESS = re.compile(
    r'(?P<host>\[[\da-f:.]+\]|([\w-]{1,63}\.)*[\w-]{1,63}):(?P<port>\d{1,5})', re.ASCII | re.IGNORECASE
)
# Environment variables with the number of processes or slices of a job; for a batch script or a shell of Slurm it is 1.
COUNTS = 'SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'MEGASCALE_NUM_SLICES'
MAX_NAMED = 10  # missing processes that a message names
GRACE = 10  # s that a failing process waits for the others


def initialize(
    distributed: bool, coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
    """`jax.distributed.initialize`: makes the devices of all processes of a job known to each.

    Comes before any other use of JAX.  SIGTERM keeps its meaning; JAX alone would catch it, and the process would live
    on.

    distributed: lets JAX find out the next three itself, from Slurm, MPI, GKE or Cloud TPU; without it and without
    `coordinator` this is the only process; coordinator: HOST:PORT of process 0; process_id: 0 .. num_processes - 1;
    timeout: s within which all processes must come.

    Raises:
        SamjaxError: an option is missing or wrong, the environment is that of several processes or of a cluster that
            JAX does not know, processes did not start, two have the same number, or process 0 cannot be reached.
    """
    if coordinator is None and (num_processes is not None or process_id is not None):
        raise SamjaxError('--processes and --process need --coordinator=HOST:PORT, the address of process 0')
    if coordinator is None and not distributed:
        _check_single_process()
        return
    if coordinator is None:
        coordinator, num_processes, process_id = _detect(timeout)
    if num_processes is None or process_id is None:
        raise SamjaxError(
            f'--coordinator={coordinator} needs --processes and --process: how many there are, and which one this is'
        )
    if not 0 <= process_id < num_processes:
        raise SamjaxError(
            f'--process={process_id} is none of --processes={num_processes}: give a number from 0 to less than '
            f'--processes'
        )
    address = ADDRESS.fullmatch(coordinator)
    if not address or not 0 < int(address['port']) < 2**16:
        raise SamjaxError(
            f'--coordinator={coordinator} is not HOST:PORT: name the host of process 0 and a free port on it, '
            f'as in node01:8476'
        )
    host, port = address['host'].strip('[]'), int(address['port'])
    if process_id == 0:
        _wait_for_processes(coordinator, port, num_processes, timeout)
    else:
        _report_to_process_0(coordinator, (host, port), num_processes, process_id, timeout)
    jax.config.update('jax_enable_preemption_service', False)
    jax.distributed.initialize(coordinator, num_processes, process_id, initialization_timeout=timeout)


def all_gather_objects(local: object) -> list:
    """The object of each process of the job, by process number; anything that can be pickled."""
    if jax.process_count() == 1:
        return [local]
    data = np.frombuffer(pickle.dumps(local), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size))
    padded = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - data.size)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(padded, sizes, strict=True)]


def exit_process(status: str | int) -> NoReturn:
    """`sys.exit` for a process that failed; a process that succeeded needs nothing, as JAX waits at exit for all.

    Processes that fail together, such as over a wrong option, end together here too.  But if one fails alone, the
    others wait for it in a computation, and JAX would abort all after five minutes with a page of text.  So this waits
    for `GRACE` seconds only.
    """
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    if jax.distributed.is_initialized():
        shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        shutdown.start()
        shutdown.join(GRACE)
        if shutdown.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def _check_single_process() -> None:
    """Raises SamjaxError if the environment is that of several processes, each of which would do all the work."""
    variables = [name for name in COUNTS if int(os.environ.get(name) or 1) > 1]
    if ',' in os.environ.get('TPU_WORKER_HOSTNAMES', ''):
        variables.append('TPU_WORKER_HOSTNAMES')
    if variables:
        raise SamjaxError(
            f'{variables[0]} says that this job has several processes, and each would work alone: give --distributed, '
            f'or unset it if this is intended'
        )


def _detect(timeout: int) -> tuple[str, int, int]:
    """Coordinator, number of processes and number of this one, as JAX finds them in the environment.

    Raises:
        SamjaxError: it finds none, or not all three.
    """
    # JAX has no public function that tells what it detects before it connects, when nothing names a missing process.
    from jax._src.clusters import ClusterEnv

    address = os.environ.get('JAX_COORDINATOR_ADDRESS')
    try:
        detected = ClusterEnv.auto_detect_unset_distributed_params(address, None, None, None, None, timeout)[:3]
    except (RuntimeError, ValueError, OSError) as error:
        raise SamjaxError(
            f'--distributed cannot read the cluster ({error}): give each process --coordinator=HOST:PORT, '
            f'--processes=N and --process=I instead'
        ) from error
    if None in detected:
        raise SamjaxError(
            '--distributed finds no cluster; it knows Slurm (srun), Open MPI 4 (mpirun), Cloud TPU, GKE and Kubernetes '
            '(with jax[k8s]): elsewhere give each process --coordinator=HOST:PORT, --processes=N and --process=I'
        )
    return detected


def _wait_for_processes(coordinator: str, port: int, num_processes: int, timeout: int) -> None:
    """Process 0: waits until all are connected, and sends them that or what is wrong.

    Raises:
        SamjaxError: the port is taken, processes did not come, or two do not fit together.
    """
    deadline = time.monotonic() + timeout
    connected: dict[socket.socket, tuple[int, str]] = {}  # process number and host at the other end
    problem = ''
    with contextlib.ExitStack() as sockets, selectors.DefaultSelector() as selector:
        listener = sockets.enter_context(_listen(port))
        selector.register(listener, selectors.EVENT_READ)
        while len(connected) < num_processes - 1 and not problem:
            events = selector.select(max(deadline - time.monotonic(), 0))
            if not events:
                missing = set(range(1, num_processes)) - {process_id for process_id, _ in connected.values()}
                problem = missing_message(coordinator, num_processes, sorted(missing), timeout)
            for key, _ in events:
                connection = key.fileobj
                if connection is listener:
                    connection = sockets.enter_context(listener.accept()[0])
                    selector.register(connection, selectors.EVENT_READ)
                elif hello := HELLO.fullmatch(_receive(connection)):
                    process_id, their_count, host = int(hello[1]), int(hello[2]), hello[3].decode()
                    hosts = dict(connected.values())
                    problem = problem or conflict_message(process_id, their_count, host, num_processes, hosts)
                    connected[connection] = process_id, host
                else:  # the connection was closed, or is of another program
                    selector.unregister(connection)
                    connection.close()
                    connected.pop(connection, None)
        for connection in connected:
            with contextlib.suppress(OSError):
                connection.sendall(f'samjax {problem or ALL_HERE}\n'.encode())
    if problem:
        raise SamjaxError(problem)


def _listen(port: int) -> socket.socket:
    """A socket that others can connect to, on every interface, as JAX does.

    Raises:
        SamjaxError: the port is taken or forbidden.
    """
    has_both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_both else socket.AF_INET
    try:
        return socket.create_server(('', port), family=family, dualstack_ipv6=has_both)
    except OSError as error:
        raise SamjaxError(
            f'process 0 cannot listen on port {port} ({os.strerror(error.errno)}): give all processes another in '
            f'--coordinator, or in JAX_COORDINATOR_PORT with --distributed'
        ) from error


def _receive(connection: socket.socket) -> bytes:
    """The bytes that came, a whole line as lines are short; none if the other end closed the connection."""
    try:
        return connection.recv(1024)
    except OSError:
        return b''


def _report_to_process_0(
    coordinator: str, address: tuple[str, int], num_processes: int, process_id: int, timeout: int
) -> None:
    """Every other process: connects to process 0 and waits until all processes have.

    Raises:
        SamjaxError: process 0 cannot be reached, or sends what is wrong.
    """
    hello = f'samjax {process_id} {num_processes} {socket.gethostname()}\n'.encode()
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection(address, timeout=max(min(deadline - time.monotonic(), 5), 0.1)) as connection:
                connection.sendall(hello)
                connection.settimeout(timeout + GRACE)  # process 0 counts from its own start
                with connection.makefile(errors='replace') as lines:
                    name, _, reply = lines.readline().strip().partition(' ')
            if name != 'samjax':
                raise ConnectionError('no reply of process 0')
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise SamjaxError(
                    f'process {process_id} on {socket.gethostname()} cannot reach process 0 at {coordinator} within '
                    f'{timeout} s ({error.strerror or error}): is it running there, and is the port open in the '
                    f'firewall?'
                ) from error
            time.sleep(0.2)
    if reply != ALL_HERE:
        raise SamjaxError(reply)


def conflict_message(process_id: int, their_count: int, host: str, num_processes: int, hosts: Mapping[int, str]) -> str:
    """Why a process does not fit to process 0 and the connected ones, empty if it does.

    their_count: number of processes that it was started with; num_processes: that process 0 was started with; hosts:
    of the connected processes by process number.
    """
    if their_count != num_processes:
        return (
            f'process {process_id} on {host} was started with --processes={their_count}, process 0 with '
            f'--processes={num_processes}: give all the same'
        )
    if process_id in hosts:
        return f'processes on {hosts[process_id]} and on {host} both have --process={process_id}: give each its own'
    return ''


def missing_message(coordinator: str, num_processes: int, missing: Sequence[int], timeout: int) -> str:
    """The sentence about processes that did not start."""
    hosts = host_names(num_processes)
    names = [f'process {i} on {hosts[i]}' if hosts else f'process {i}' for i in missing[:MAX_NAMED]]
    if len(missing) > MAX_NAMED:
        names.append(f'{len(missing) - MAX_NAMED} more')
    return (
        f'{len(missing)} of {num_processes} processes did not join {coordinator} within {timeout} s '
        f'({", ".join(names)}): look at their logs, or give a longer --start-timeout'
    )


def host_names(num_processes: int) -> list[str] | None:
    """The host of each process; None if the environment does not name them.

    Slurm numbers the processes node by node, unless asked for another distribution.  TPU_WORKER_HOSTNAMES names the
    hosts of one slice.
    """
    nodes = os.environ.get('SLURM_STEP_NODELIST') or os.environ.get('SLURM_JOB_NODELIST')
    if nodes and os.environ.get('SLURM_DISTRIBUTION', 'block').startswith('block'):
        counts = expand_counts(
            os.environ.get('SLURM_STEP_TASKS_PER_NODE') or os.environ.get('SLURM_TASKS_PER_NODE', '')
        )
        names = [node for node, count in zip(expand_nodes(nodes), counts, strict=False) for _ in range(count)]
    else:
        names = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
    return names if len(names) == num_processes else None


def expand_nodes(nodes: str) -> list[str]:
    """'gpu[01-03,07],login1' -> gpu01, gpu02, gpu03, gpu07, login1; of several brackets the last counts fastest."""
    names = []
    for node in re.findall(r'(?:[^,\[]|\[[^\]]*\])+', nodes):
        prefix, bracket, rest = node.partition('[')
        if not bracket:
            names.append(node)
            continue
        ranges, _, suffix = rest.partition(']')
        for span in ranges.split(','):
            first, _, last = span.partition('-')
            for number in range(int(first), int(last or first) + 1):
                names += expand_nodes(f'{prefix}{number:0{len(first)}}{suffix}')
    return names


def expand_counts(counts: str) -> list[int]:
    """'4(x2),1' -> 4, 4, 1."""
    return [int(count) for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', counts) for _ in range(int(times or 1))]
