"""Joins the processes of a job, and says who is missing.

jax alone names nobody: if a process does not come, or process 0 cannot be reached, the C++ below it ends the process
after twice the time with a stack trace, before Python sees an error.  So the processes meet first, on the port that jax
takes over afterwards: process 0 listens, each other one connects, sends one line and waits for one line.

    samjax 3 8 gpu02        to process 0: here is process 3 of 8, on gpu02
    samjax all here         from it; or, after the name, the sentence that every process ends with

Process 0 knows at the deadline who came, and tells those.  A process that hangs up has not come.
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
from typing import NoReturn

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from samjax.errors import SamjaxError

HELLO = re.compile(rb'samjax (\d+) (\d+) (\S+)\n')
ALL_HERE = 'all here'
ADDRESS = re.compile(
    r'(?P<host>\[[\da-f:.]+\]|([\w-]{1,63}\.)*[\w-]{1,63}):(?P<port>\d{1,5})', re.ASCII | re.IGNORECASE
)
# Each of these counts the processes or slices of a job; Slurm's own count of a batch script or a shell is 1.
COUNTS = 'SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE', 'MEGASCALE_NUM_SLICES'
NAMED = 10  # missing processes that a message names
GRACE = 10  # seconds that a failing process waits for the others


def define_flags() -> None:
    """The options of a command that several processes may run together."""
    flags.DEFINE_boolean('distributed', False, 'One of the processes that Slurm, MPI, GKE or a TPU started.')
    flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, where nothing tells the processes.')
    flags.DEFINE_integer('processes', None, 'With --coordinator: how many processes there are.')
    flags.DEFINE_integer('process', None, 'With --coordinator: the number of this one, from 0.')
    flags.DEFINE_integer('start_timeout', 300, 'Seconds to wait for the other processes.')


def initialize_from_flags() -> None:
    """`initialize` as the command line says."""
    values = flags.FLAGS
    initialize(values.distributed, values.coordinator, values.processes, values.process, values.start_timeout)


def initialize(
    distributed: bool, coordinator: str | None, processes: int | None, process: int | None, timeout: int
) -> None:
    """Makes the devices of all processes of a job known to each; comes before any other use of jax.

    `coordinator` is HOST:PORT of process 0, and this one is number `process` of `processes`.  With `distributed` alone
    jax finds these three itself; with neither this process is the only one.  All must come within `timeout` seconds.

    SIGTERM keeps its meaning; jax by itself would note it, and the process would live on.

    Raises:
        SamjaxError: an option is missing or wrong, the environment is one of several processes or of none that jax
            knows, processes did not come, two have the same number, or process 0 cannot be reached.
    """
    if coordinator is None and (processes is not None or process is not None):
        raise SamjaxError('--processes and --process need --coordinator=HOST:PORT, the address of process 0')
    if coordinator is None and not distributed:
        _check_alone()
        return
    if coordinator is None:
        coordinator, processes, process = _detect(timeout)
    if processes is None or process is None:
        raise SamjaxError(
            f'--coordinator={coordinator} needs --processes and --process: how many there are, and which one this is'
        )
    if not 0 <= process < processes:
        raise SamjaxError(
            f'--process={process} is none of --processes={processes}: give a number from 0 to less than --processes'
        )
    address = ADDRESS.fullmatch(coordinator)
    if not address or not 0 < int(address['port']) < 2**16:
        raise SamjaxError(
            f'--coordinator={coordinator} is not HOST:PORT: name the host of process 0 and a free port on it, '
            f'as in node01:8476'
        )
    host, port = address['host'].strip('[]'), int(address['port'])
    if process == 0:
        _call_roll(coordinator, port, processes, timeout)
    else:
        _announce(coordinator, (host, port), processes, process, timeout)
    jax.config.update('jax_enable_preemption_service', False)
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=timeout)


def all_gather_objects(mine) -> list:
    """What each process of the job has, by their numbers; anything that can be pickled."""
    if jax.process_count() == 1:
        return [mine]
    data = np.frombuffer(pickle.dumps(mine), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size))
    everything = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - data.size)))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(everything, sizes, strict=True)]


def exit_process(status: str | int) -> NoReturn:
    """sys.exit for a process that failed; one that is done needs nothing, as jax waits at exit until all are.

    Processes that fail together, over a wrong option, meet there too.  But if one fails alone, the others wait for it
    in a computation, and after five minutes all are aborted with a page of text.  So this waits `GRACE` seconds only.
    """
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    if jax.distributed.is_initialized():
        meeting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        meeting.start()
        meeting.join(GRACE)
        if meeting.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    sys.exit(status)


def _check_alone() -> None:
    """Raises SamjaxError if the environment is one of several processes, each of which would do all the work."""
    several = [name for name in COUNTS if int(os.environ.get(name) or 1) > 1]
    if ',' in os.environ.get('TPU_WORKER_HOSTNAMES', ''):
        several.append('TPU_WORKER_HOSTNAMES')
    if several:
        raise SamjaxError(
            f'{several[0]} says that this job has several processes, and each would work alone: give --distributed, '
            f'or unset it if this is meant'
        )


def _detect(timeout: int) -> tuple[str, int, int]:
    """Coordinator, processes and process, as jax finds them.

    Raises:
        SamjaxError: it finds nothing, or not what it needs.
    """
    from jax._src.clusters import ClusterEnv  # there is no public name for it

    given = os.environ.get('JAX_COORDINATOR_ADDRESS')
    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(given, None, None, None, None, timeout)[:3]
    except (RuntimeError, ValueError, OSError) as error:
        raise SamjaxError(
            f'--distributed cannot read the cluster ({error}): give each process --coordinator=HOST:PORT, '
            f'--processes=N and --process=I instead'
        ) from error
    if None in found:
        raise SamjaxError(
            '--distributed finds no cluster; it knows Slurm (srun), Open MPI 4 (mpirun), Cloud TPU, GKE and Kubernetes '
            '(with jax[k8s]): elsewhere give each process --coordinator=HOST:PORT, --processes=N and --process=I'
        )
    return found


def _call_roll(coordinator: str, port: int, processes: int, timeout: int) -> None:
    """Process 0: waits until all have come and tells them so, or what is wrong.

    Raises:
        SamjaxError: the port is taken, processes did not come, or two do not fit together.
    """
    deadline = time.monotonic() + timeout
    came: dict[socket.socket, tuple[int, str]] = {}  # number and host at the other end of each connection
    wrong = ''
    with contextlib.ExitStack() as sockets, selectors.DefaultSelector() as selector:
        listener = sockets.enter_context(_listen(port))
        selector.register(listener, selectors.EVENT_READ)
        while len(came) < processes - 1 and not wrong:
            events = selector.select(max(deadline - time.monotonic(), 0))
            if not events:
                missing = set(range(1, processes)) - {process for process, _ in came.values()}
                wrong = absence(coordinator, processes, sorted(missing), timeout)
            for key, _ in events:
                connection = key.fileobj
                if connection is listener:
                    connection = sockets.enter_context(listener.accept()[0])
                    selector.register(connection, selectors.EVENT_READ)
                elif hello := HELLO.fullmatch(_receive(connection)):
                    process, of, host = int(hello[1]), int(hello[2]), hello[3].decode()
                    wrong = wrong or misfit(process, of, host, processes, dict(came.values()))
                    came[connection] = process, host
                else:  # hung up, or a stranger
                    selector.unregister(connection)
                    connection.close()
                    came.pop(connection, None)
        for connection in came:
            with contextlib.suppress(OSError):
                connection.sendall(f'samjax {wrong or ALL_HERE}\n'.encode())
    if wrong:
        raise SamjaxError(wrong)


def _listen(port: int) -> socket.socket:
    """A socket that others can connect to, on every interface, as jax does.

    Raises:
        SamjaxError: the port is taken or forbidden.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(('', port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise SamjaxError(
            f'process 0 cannot listen on port {port} ({os.strerror(error.errno)}): give all processes another in '
            f'--coordinator, or in JAX_COORDINATOR_PORT with --distributed'
        ) from error


def _receive(connection: socket.socket) -> bytes:
    """What came, a whole line as it is short; nothing if the other end hung up."""
    try:
        return connection.recv(1024)
    except OSError:
        return b''


def _announce(coordinator: str, address: tuple[str, int], processes: int, process: int, timeout: int) -> None:
    """Every other process: tells process 0 that it is there and waits until all are.

    Raises:
        SamjaxError: process 0 cannot be reached, or says what is wrong.
    """
    hello = f'samjax {process} {processes} {socket.gethostname()}\n'.encode()
    deadline = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection(address, timeout=max(min(deadline - time.monotonic(), 5), 0.1)) as connection:
                connection.sendall(hello)
                connection.settimeout(timeout + GRACE)  # process 0 counts from its own start
                with connection.makefile(errors='replace') as lines:
                    name, _, answer = lines.readline().strip().partition(' ')
            if name != 'samjax':
                raise ConnectionError('no answer of process 0')
            break
        except OSError as error:
            if time.monotonic() >= deadline:
                raise SamjaxError(
                    f'process {process} on {socket.gethostname()} cannot reach process 0 at {coordinator} within '
                    f'{timeout} s ({error.strerror or error}): is it running there, and is the port open in the '
                    f'firewall?'
                ) from error
            time.sleep(0.2)
    if answer != ALL_HERE:
        raise SamjaxError(answer)


def misfit(process: int, of: int, host: str, processes: int, came: dict[int, str]) -> str:
    """What is wrong with process `process` of `of` on `host` beside process 0 of `processes` and those that came."""
    if of != processes:
        return (
            f'process {process} on {host} was started with --processes={of}, process 0 with --processes={processes}: '
            f'give all the same'
        )
    if process in came:
        return f'processes on {came[process]} and on {host} both have --process={process}: give each its own'
    return ''


def absence(coordinator: str, processes: int, missing: list[int], timeout: int) -> str:
    """The sentence about processes that did not come."""
    names = hosts(processes)
    known = [f'process {i} on {names[i]}' if names else f'process {i}' for i in missing[:NAMED]]
    if len(missing) > NAMED:
        known.append(f'{len(missing) - NAMED} more')
    return (
        f'{len(missing)} of {processes} processes did not join {coordinator} within {timeout} s ({", ".join(known)}): '
        f'look at their logs, or give a longer --start_timeout'
    )


def hosts(processes: int) -> list[str] | None:
    """The host of each process; None if the environment does not tell.

    Slurm numbers the processes node by node, unless asked for another distribution.  TPU_WORKER_HOSTNAMES names the
    hosts of one slice.
    """
    nodes = os.environ.get('SLURM_STEP_NODELIST') or os.environ.get('SLURM_JOB_NODELIST')
    if nodes and os.environ.get('SLURM_DISTRIBUTION', 'block').startswith('block'):
        counts = os.environ.get('SLURM_STEP_TASKS_PER_NODE') or os.environ.get('SLURM_TASKS_PER_NODE', '')
        names = [node for node, count in zip(expand(nodes), repeat(counts), strict=False) for _ in range(count)]
    else:
        names = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
    return names if len(names) == processes else None


def expand(nodes: str) -> list[str]:
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
                names += expand(f'{prefix}{number:0{len(first)}}{suffix}')
    return names


def repeat(counts: str) -> list[int]:
    """'4(x2),1' -> 4, 4, 1."""
    return [int(count) for count, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', counts) for _ in range(int(times or 1))]
