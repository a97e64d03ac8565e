"""samjax.distributed.processes: processes of a job meet, and one line names the missing ones."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest.mock

import jax
import pytest

from samjax.distributed import processes
from samjax.errors import SamjaxError

ROOT = pathlib.Path(__file__).parents[2]
FOREIGN = ('SLURM_', 'OMPI_', 'TPU_', 'MEGASCALE_', 'KUBERNETES_', 'JAX_', 'XLA_')  # variables of clusters
JOIN = """
import os, signal, sys, time
import jax
from jax.experimental import multihost_utils
from samjax.distributed import processes
from samjax.errors import SamjaxError

try:
    processes.initialize({})
except SamjaxError as error:
    processes.exit_process(f'error: {{error}}')
"""


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    """The environment of no job, wherever the tests run."""
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)


@pytest.fixture
def coordinator():
    """The address of a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{probe.getsockname()[1]}'


# ---------------------------------------------------------------------------------------------- options, environment


@pytest.mark.parametrize(
    ('nodes', 'names'),
    [
        ('node1', ['node1']),
        ('node1,login', ['node1', 'login']),
        ('gpu[01-03,07],login1', ['gpu01', 'gpu02', 'gpu03', 'gpu07', 'login1']),
        ('n[8-11]', ['n8', 'n9', 'n10', 'n11']),
        ('n[098-101]', ['n098', 'n099', 'n100', 'n101']),
        ('a[1-2]-ib,b-c[3]', ['a1-ib', 'a2-ib', 'b-c3']),
        ('r[1-2]n[1,3]', ['r1n1', 'r1n3', 'r2n1', 'r2n3']),
    ],
)
def test_a_node_list_names_its_nodes_in_order(nodes, names):
    assert processes.expand_nodes(nodes) == names


def test_tasks_per_node():
    assert processes.expand_counts('4(x2),1') == [4, 4, 1]
    assert processes.expand_counts('2') == [2]
    assert processes.expand_counts('1,16(x2),3') == [1, 16, 16, 3]


SLURM = {'SLURM_STEP_NODELIST': 'gpu[1-2]', 'SLURM_STEP_TASKS_PER_NODE': '2,1'}


@pytest.mark.parametrize(
    ('environment', 'hosts'),
    [
        ({}, None),
        (SLURM, ['gpu1', 'gpu1', 'gpu2']),
        (SLURM | {'SLURM_JOB_NODELIST': 'gpu[1-9]', 'SLURM_TASKS_PER_NODE': '1(x9)'}, ['gpu1', 'gpu1', 'gpu2']),
        ({'SLURM_JOB_NODELIST': 'a,b', 'SLURM_TASKS_PER_NODE': '1,2'}, ['a', 'b', 'b']),
        ({'SLURM_JOB_NODELIST': 'a,b', 'SLURM_TASKS_PER_NODE': '2(x2)'}, None),  # a job of four
        (SLURM | {'SLURM_DISTRIBUTION': 'block:cyclic'}, ['gpu1', 'gpu1', 'gpu2']),
        (SLURM | {'SLURM_DISTRIBUTION': 'cyclic'}, None),
        ({'TPU_WORKER_HOSTNAMES': 't-0,t-1,t-2'}, ['t-0', 't-1', 't-2']),
        ({'TPU_WORKER_HOSTNAMES': 't-0'}, None),  # three slices of one host
    ],
)
def test_host_names_of_three_processes(monkeypatch, environment, hosts):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.host_names(3) == hosts


def test_at_most_ten_missing_processes_are_named():
    sentence = processes.missing_message('n:1', 64, list(range(1, 64)), 5)
    assert sentence.startswith('63 of 64 processes did not join n:1 within 5 s (process 1, process 2, ')
    assert ', process 10, 53 more): ' in sentence


@pytest.mark.parametrize(
    ('coordinator', 'num_processes', 'process_id', 'message'),
    [
        ('n:1', None, None, '--coordinator=n:1 needs --processes and --process: '),
        ('n:1', 2, None, '--coordinator=n:1 needs --processes and --process: '),
        ('n:1', None, 1, '--coordinator=n:1 needs --processes and --process: '),
        (None, 2, 0, '--processes and --process need --coordinator=HOST:PORT, '),
        (None, None, 0, '--processes and --process need --coordinator=HOST:PORT, '),
        ('n:1', 2, 2, '--process=2 is none of --processes=2: '),
        ('n:1', 2, -1, '--process=-1 is none of --processes=2: '),
        ('n:1', 0, 0, '--process=0 is none of --processes=0: '),
        ('n', 2, 0, '--coordinator=n is not HOST:PORT: '),
        ('n:', 2, 0, '--coordinator=n: is not HOST:PORT: '),
        (':1', 2, 0, '--coordinator=:1 is not HOST:PORT: '),
        ('n:0', 2, 0, '--coordinator=n:0 is not HOST:PORT: '),
        ('n:65536', 2, 0, '--coordinator=n:65536 is not HOST:PORT: '),
        ('n:1:2', 2, 0, '--coordinator=n:1:2 is not HOST:PORT: '),
        ('http://n:1', 2, 0, '--coordinator=http://n:1 is not HOST:PORT: '),
        ('a..b:1', 2, 0, '--coordinator=a..b:1 is not HOST:PORT: '),
    ],
)
@pytest.mark.parametrize('distributed', [False, True])
def test_wrong_options(distributed, coordinator, num_processes, process_id, message):
    with pytest.raises(SamjaxError) as error:
        processes.initialize(distributed, coordinator, num_processes, process_id, 1)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('SLURM_STEP_NUM_TASKS', '2'),
        ('OMPI_COMM_WORLD_SIZE', '16'),
        ('TPU_WORKER_HOSTNAMES', 'host-0,host-1'),
        ('MEGASCALE_NUM_SLICES', '2'),
    ],
)
def test_one_of_several_processes_is_not_run_alone(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SamjaxError, match=f'^{name} says that this job has several processes, .* --distributed'):
        processes.initialize(False, None, None, None, 1)


@pytest.mark.parametrize(
    'environment',
    [
        {},
        {'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'},  # the script of sbatch, outside of srun
        {'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '1'},  # a shell of salloc
        {'OMPI_COMM_WORLD_SIZE': '1', 'TPU_WORKER_HOSTNAMES': 'localhost', 'MEGASCALE_NUM_SLICES': ''},
    ],
)
def test_a_single_process_initializes_nothing(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.initialize(False, None, None, None, 1)
    assert not jax.distributed.is_initialized()


def test_distributed_without_a_cluster():
    with pytest.raises(SamjaxError, match=r'^--distributed finds no cluster; .*Slurm.*--coordinator=HOST:PORT'):
        processes.initialize(True, None, None, None, 1)


def test_distributed_with_a_cluster_that_cannot_be_read(monkeypatch):
    for name, value in {'JOB_ID': 'x', 'STEP_NODELIST': 'n', 'NTASKS': '2', 'PROCID': '0', 'LOCALID': '0'}.items():
        monkeypatch.setenv(f'SLURM_{name}', value)
    with pytest.raises(
        SamjaxError, match=r"^--distributed cannot read the cluster \(.*'x'\): give each process --coor"
    ):
        processes.initialize(True, None, None, None, 1)


# ------------------------------------------------------------------------------------------- the meeting, without JAX


def meet(monkeypatch, *options, **others):
    """How a thread with each of `options` (coordinator, num_processes, process_id, timeout) ends."""
    ends = [None] * len(options)

    def run(i):
        try:
            processes.initialize(False, *options[i])
        except SamjaxError as error:
            ends[i] = str(error)

    def initialize(*arguments, initialization_timeout):
        ends[options.index((*arguments, initialization_timeout))] = 'joined'

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(options))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive()
    return ends


def reach(coordinator):
    """A connection to process 0 on which nothing has been sent yet."""
    host, port = coordinator.split(':')
    for _ in range(100):
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError('process 0 does not listen')


def test_all_meet_in_any_order_and_again_on_the_same_port(monkeypatch, coordinator):
    options = [(coordinator, 4, process, 10) for process in (2, 0, 3, 1)]
    assert meet(monkeypatch, *options) == ['joined'] * 4
    assert meet(monkeypatch, *options) == ['joined'] * 4
    assert meet(monkeypatch, (coordinator, 1, 0, 10)) == ['joined']
    assert not jax.config.jax_enable_preemption_service


def test_connected_processes_learn_which_are_missing(monkeypatch, coordinator):
    monkeypatch.setenv('SLURM_JOB_NODELIST', 'gpu[1-2]')
    monkeypatch.setenv('SLURM_TASKS_PER_NODE', '2(x2)')
    begun = time.monotonic()
    first, second = meet(monkeypatch, (coordinator, 4, 0, 1), (coordinator, 4, 2, 1))
    assert time.monotonic() - begun < 5
    assert first == second
    assert first == (
        f'2 of 4 processes did not join {coordinator} within 1 s (process 1 on gpu1, process 3 on gpu2): '
        f'look at their logs, or give a longer --start-timeout'
    )


def test_closed_and_foreign_connections_do_not_count(monkeypatch, coordinator):
    ends = []
    thread = threading.Thread(target=lambda: ends.extend(meet(monkeypatch, (coordinator, 3, 0, 1))), daemon=True)
    thread.start()
    with reach(coordinator) as stranger, reach(coordinator), reach(coordinator) as process_1:
        stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
        process_1.sendall(b'samjax 1 3 gpu1\n')
        process_1.shutdown(socket.SHUT_WR)
        with reach(coordinator) as process_2:
            process_2.sendall(b'samjax 2 3 gpu2\n')
            thread.join(10)
            assert ends[0].startswith(f'1 of 3 processes did not join {coordinator} within 1 s (process 1): ')
            assert process_2.recv(1024).decode() == f'samjax {ends[0]}\n'
            assert stranger.recv(1024) == b''


def test_two_processes_with_the_same_number(monkeypatch, coordinator):
    ends = meet(monkeypatch, (coordinator, 3, 0, 10), (coordinator, 3, 1, 10), (coordinator, 3, 1, 11))
    host = socket.gethostname()
    assert ends == [f'processes on {host} and on {host} both have --process=1: give each its own'] * 3


def test_different_numbers_of_processes(monkeypatch, coordinator):
    ends = meet(monkeypatch, (coordinator, 3, 0, 10), (coordinator, 4, 1, 10))
    assert ends[0] == ends[1]
    assert ends[0] == (
        f'process 1 on {socket.gethostname()} was started with --processes=4, process 0 with --processes=3: '
        f'give all the same'
    )


def test_the_port_is_taken(monkeypatch, coordinator):
    with socket.create_server(('', int(coordinator.split(':')[1]))):
        (end,) = meet(monkeypatch, (coordinator, 2, 0, 1))
    assert end.startswith(
        f'process 0 cannot listen on port {coordinator.split(":")[1]} (Address already in use): give '
    )


def test_process_0_is_missing_or_another_program_listens(monkeypatch, coordinator):
    where = f'process 1 on {socket.gethostname()} cannot reach process 0 at'
    (end,) = meet(monkeypatch, (coordinator, 2, 1, 0))
    assert end.startswith(f'{where} {coordinator} within 0 s (Connection refused): ')
    with monkeypatch.context() as patch:
        unknown = socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
        patch.setattr(socket, 'getaddrinfo', unittest.mock.Mock(side_effect=unknown))
        (end,) = meet(monkeypatch, ('nowhere:1', 2, 1, 0))
    assert end.startswith(f'{where} nowhere:1 within 0 s (Name or service not known): ')
    with socket.create_server(('127.0.0.1', int(coordinator.split(':')[1]))) as server:

        def serve():
            server.settimeout(0.5)
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.recv(1024)
                        connection.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')

        thread = threading.Thread(target=serve)
        thread.start()
        (end,) = meet(monkeypatch, (coordinator, 2, 1, 1))
        thread.join()
    assert end.startswith(f'{where} {coordinator} within 1 s (no reply of process 0): ')


# ------------------------------------------------------------------------------------------------------ real processes


def run(*jobs, limit=60):
    """Runs each (code, environment) in a process of its own, all at once; returns (exit code, stdout, stderr) of each.

    No process outlives this call.
    """
    processes = []
    try:
        for code, environment in jobs:
            processes.append(
                subprocess.Popen(
                    [sys.executable, '-c', code],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': ''} | environment,
                )
            )
        deadline = time.monotonic() + limit
        outputs = [process.communicate(timeout=deadline - time.monotonic()) for process in processes]
        return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


ADD = """
parts = multihost_utils.process_allgather(jax.numpy.array(10 ** jax.process_index()))
print(jax.process_count(), 'processes add up to', parts.sum())
print(processes.all_gather_objects(['a', 'much longer'][jax.process_index()]))
time.sleep(jax.process_index())  # process 0 ends first
"""


def test_two_processes_compute_together_and_the_first_to_end_harms_nobody(coordinator):
    options = [(False, coordinator, 2, process, 20) for process in range(2)]
    ends = run(*((JOIN.format(f'*{each}') + ADD, {}) for each in options))
    for code, out, err in ends:
        assert code == 0, err
        assert out.endswith("2 processes add up to 11\n['a', 'much longer']\n")


def test_slurm_numbers_the_processes(coordinator):
    job = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2', 'SLURM_LOCALID': '0'}
    job['JAX_COORDINATOR_PORT'] = coordinator.split(':')[1]
    end = '\nprint(jax.process_count(), jax.process_index())'
    ends = run(*((JOIN.format('True, None, None, None, 20') + end, job | {'SLURM_PROCID': i}) for i in '01'))
    assert [(code, out.splitlines()[-1]) for code, out, _ in ends] == [(0, '2 0'), (0, '2 1')]


def test_sigterm_ends_a_process_that_joined(coordinator):
    end = "\nprint('joined', flush=True)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(20)"
    ((code, out, _),) = run((JOIN.format(f'False, {coordinator!r}, 1, 0, 20') + end, {}))
    assert (code, out) == (-signal.SIGTERM, 'joined\n')


def test_one_line_names_the_missing_process(coordinator):
    job = {'SLURM_JOB_NODELIST': 'gpu[01-02]', 'SLURM_TASKS_PER_NODE': '1(x2)'}
    begun = time.monotonic()
    ((code, out, err),) = run((JOIN.format(f'False, {coordinator!r}, 2, 0, 1'), job))
    assert time.monotonic() - begun < 10
    assert (code, out) == (1, '')
    assert err == (
        f'error: 1 of 2 processes did not join {coordinator} within 1 s (process 1 on gpu02): '
        f'look at their logs, or give a longer --start-timeout\n'
    )


def test_one_line_says_that_process_0_cannot_be_reached(coordinator):
    ((code, out, err),) = run((JOIN.format(f'False, {coordinator!r}, 2, 1, 1'), {}))
    assert (code, out) == (1, '')
    assert err == (
        f'error: process 1 on {socket.gethostname()} cannot reach process 0 at {coordinator} within 1 s '
        f'(Connection refused): is it running there, and is the port open in the firewall?\n'
    )


LEAVE = """
processes.GRACE = 1
multihost_utils.process_allgather(jax.numpy.array(1))  # a first one would wait half a minute for the other
try:
    if jax.process_index():
        raise SamjaxError('the disk is full')
    multihost_utils.process_allgather(jax.numpy.array(1))
except SamjaxError as error:
    print('leaves', end='')  # not flushed
    processes.exit_process(f'error: {error}')
except Exception:
    processes.exit_process('error: lost the other')
"""


def test_a_process_that_fails_alone_ends_and_so_does_the_other(coordinator):
    begun = time.monotonic()
    options = [(False, coordinator, 2, process, 20) for process in range(2)]
    ends = run(*((JOIN.format(f'*{each}') + LEAVE, {}) for each in options))
    assert time.monotonic() - begun < 20
    assert ends[1][0] == 1
    assert ends[1][1].endswith('leaves')
    assert 'error: the disk is full\n' in ends[1][2]
    assert ends[0][0] == 1
    assert 'error: lost the other\n' in ends[0][2]


def test_processes_that_fail_together_meet_at_exit(coordinator):
    options = [(False, coordinator, 2, process, 20) for process in range(2)]
    end = "\ntime.sleep(jax.process_index())\nprocesses.exit_process('error: the same')"
    for code, _, err in run(*((JOIN.format(f'*{each}') + end, {}) for each in options)):
        assert code == 1
        assert err.endswith('error: the same\n')
