"""Launch scripts, YAML files and docs/launch.md: they parse, name options that exist, and do what they say with
stand-ins for the commands of clouds and clusters."""

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from samjax.cli.main import main
from samjax.config import get_config

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
FILES = sorted((ROOT / 'launch').iterdir())
GUIDE = (ROOT / 'docs' / 'launch.md').read_text()
BLOCKS = re.findall(r'^```sh\n(.*?)^```', GUIDE, re.MULTILINE | re.DOTALL)
ROUTES = ['One machine', 'SLURM', 'TPU VM over ssh', 'Queued resources', 'XPK on GKE', 'SkyPilot']
CHANGE = '--config.train.profile_steps=(1, 2)'  # an option that a shell would take apart

STAND_IN = """#!{python}
import json, os, sys
calls = os.environ['CALLS']
with open(calls, 'a') as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + '\\n')
answers = json.loads(os.environ.get('ANSWERS', '{{}}'))
for words, (text, code) in answers.items():
    if words in ' '.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]):
        print(text)
        sys.exit(code)
"""
COMMANDS = [
    *('gcloud', 'git', 'xpk', 'kubectl', 'docker', 'srun', 'scontrol', 'uv', 'systemctl', 'systemd-run', 'mountpoint'),
    *('mount', 'apt-get', 'sleep'),
]


def flags_of(command):
    """The flags in the help of a command of samjax."""
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
        main([command, '--help'])
    return set(re.findall(r'(?<!\S)--[\w-]+', help_text.getvalue()))


FLAGS = flags_of('train')


@pytest.fixture
def run(tmp_path):
    """Runs a script of launch/ with stand-ins; returns its exit code, what it printed and what it called."""
    for name in COMMANDS:
        path = tmp_path / name
        path.write_text(STAND_IN.format(python=sys.executable))
        path.chmod(0o755)

    def run(script, *arguments, answers=None, **settings):
        calls = tmp_path / 'calls'
        calls.write_text('')
        env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'HOME': str(tmp_path), 'CALLS': str(calls), **settings}
        env |= {'ANSWERS': json.dumps(answers or {})}
        done = subprocess.run(
            ['bash', str(ROOT / 'launch' / script), *arguments], env=env, cwd=ROOT, capture_output=True, text=True
        )
        return done.returncode, done.stdout, [json.loads(line) for line in calls.read_text().splitlines()]

    return run


def check_options(arguments):
    """Arguments of train.py: each is an option that it has."""
    names = [argument.partition('=')[0] for argument in arguments if argument.startswith('--')]
    assert {'--config', '--workdir'} <= set(names), arguments
    for name in names:
        check_option(name)
    config = dict(zip(arguments, [*arguments[1:], ''], strict=True)).get('--config')
    assert config is None or (ROOT / config).exists()


def check_option(name):
    if name.startswith('--config.'):
        value = get_config()
        for key in name.split('.')[1:]:
            assert key in value, f'{name} is in no config'
            value = value[key]
    else:
        assert name in FLAGS, f'train.py has no {name}'


def after(words, word):
    """What follows `word`."""
    return words[words.index(word) + 1 :]


def test_flags_of_train_are_known():
    job = {'--distributed', '--coordinator', '--processes', '--process', '--start-timeout'}
    assert job | {'--config', '--workdir'} <= FLAGS


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_script_parses(path):
    assert path.read_text().startswith('#!/usr/bin/env bash\n# ')
    assert os.access(path, os.X_OK)
    subprocess.run(['bash', '-n', path], check=True)


def test_commands_of_the_guide_parse():
    assert len(BLOCKS) > 20
    for block in BLOCKS:
        done = subprocess.run(['bash', '-n'], input=block, capture_output=True, text=True)
        assert done.returncode == 0, f'{done.stderr}\n{block}'


def test_commands_name_options_that_exist():
    texts = BLOCKS + [path.read_text() for path in FILES]
    commands = [
        command for text in texts for command in re.findall(r'\b(?:train\.py|samjax train)\b((?:\\\n|.)*)', text)
    ]
    options = [re.findall(r'(?<!\S)(--[\w.-]+)', command) for command in commands]
    assert sum('--workdir' in names for names in options) >= 9
    for name in sum(options, []):
        check_option(name)


def test_other_commands_name_options_that_exist():
    commands = re.findall(r'(?:python -m samjax|\bsamjax) (preflight|convert|predict) (.*)', '\n'.join(BLOCKS))
    assert commands
    for name, rest in commands:
        known = flags_of(name)
        for option in re.findall(r'(?<!\S)--[\w.-]+', rest):
            if option.startswith('--config.'):
                check_option(option)
            else:
                assert option in known, f'{name} has no {option}'


def test_named_files_exist():
    text = GUIDE + ''.join(path.read_text() for path in FILES)
    for name in set(re.findall(r'\b(?:configs|launch|docs)/[\w.]*\w', text)):
        assert (ROOT / name).exists(), name


def test_links_within_the_guide_lead_somewhere():
    anchors = {title.lower().replace(' ', '-') for title in re.findall(r'^#+ (.*)', GUIDE, re.MULTILINE)}
    assert set(re.findall(r'\]\(#([\w-]+)\)', GUIDE)) <= anchors


@pytest.mark.parametrize('route', ROUTES)
def test_route_says_how_and_what_was_checked(route):
    section = re.search(rf'^## {route}\n(.*?)^## ', GUIDE, re.MULTILINE | re.DOTALL)[1]
    for word in ('need', 'Start', 'Watch', 'esume', 'elete'):
        assert word in section, word
    last = section.strip().split('\n\n')[-1]
    assert last.startswith('Checked: ')
    assert 'Not run' in last


def test_dry_run_calls_nothing(run):
    for script in ('tpu_vm.sh', 'queued_resource.sh', 'xpk.sh'):
        action = 'create' if script == 'queued_resource.sh' else 'start'
        code, printed, calls = run(script, action, DRY_RUN='1', PROJECT='p')
        assert code == 0
        assert 'on_host' in printed or 'train.py' in printed or 'startup-script' in printed
        assert all(call[0] == 'git' for call in calls)


@pytest.mark.parametrize('script', ['tpu_vm.sh', 'queued_resource.sh', 'xpk.sh'])
def test_unknown_action_prints_how_to_call(run, script):
    code, printed, calls = run(script, 'fly')
    assert code == 2
    assert f'launch/{script}' in printed
    assert not calls


@pytest.mark.parametrize(('script', 'group'), [('tpu_vm.sh', 'tpu-vm'), ('queued_resource.sh', 'queued-resources')])
@pytest.mark.parametrize('action', ['create', 'watch', 'stop', 'delete'])
def test_cloud_commands_name_slice_project_and_zone(run, script, group, action):
    code, _, calls = run(script, action, PROJECT='p', ZONE='z', NAME='n')
    assert code == 0
    command = [call for call in calls if group in call][-1]
    assert command[:4] == ['gcloud', 'compute', 'tpus', group]
    assert {'n', '--project=p', '--zone=z'} <= set(command)


def hosts_of_slices(start):
    """Settings and options that the command of a launch script gives each host."""
    words = shlex.split(start)
    assert words[words.index('bash') + 1 :][:2] == ['/opt/samjax/launch/tpu_vm.sh', 'on_host']
    settings = dict(word.split('=', 1) for word in words if re.match(r'[A-Z]+=', word))
    return settings, after(words, 'on_host')


@pytest.mark.parametrize('more', [[], [CHANGE]])
@pytest.mark.parametrize('route', ['ssh', 'queue'])
def test_hosts_of_a_slice_start_the_service(run, route, more, tmp_path):
    disk = str(tmp_path / 'a disk')
    mine = {'PROJECT': 'p', 'NFS': '10.0.0.2:/share', 'SHARED': disk, 'CONFIG': 'configs/quickstart.py'}
    if route == 'ssh':
        code, _, calls = run('tpu_vm.sh', 'start', *more, **mine)
        copy, start = (call for call in calls if call[0] == 'gcloud')
        assert copy[4] == 'scp'
        assert '--worker=all' in copy
        assert '--worker=all' in start
        start = next(word for word in start if word.startswith('--command=')).removeprefix('--command=')
    else:
        code, printed, _ = run('queued_resource.sh', 'startup', *more, BUCKET='gs://b', **mine)
        subprocess.run(['bash', '-n'], input=printed, text=True, check=True)
        start = printed.splitlines()[-1]
    assert code == 0

    settings, options = hosts_of_slices(start)
    code, _, calls = run('tpu_vm.sh', 'on_host', *options, answers={'mountpoint': ['', 1]}, **settings)
    assert code == 0
    assert ['mount', '-t', 'nfs', mine['NFS'], disk] in calls
    service = calls[-1]
    assert service[0] == 'systemd-run'
    assert '--setenv=JAX_COORDINATOR_PORT=8476' in service
    arguments = after(service, 'train.py')
    check_options(arguments)
    assert arguments[:4] == ['--config', mine['CONFIG'], '--workdir', f'{disk}/runs/samjax']
    assert after(arguments, '--distributed') == ['--start-timeout', '900', *more]


def test_host_without_shared_storage_does_not_start(run, tmp_path):
    code, _, calls = run('tpu_vm.sh', 'on_host', answers={'mountpoint': ['', 1]}, SHARED=str(tmp_path / 'none'))
    assert code == 1
    assert 'systemd-run' not in [call[0] for call in calls]


def test_several_slices_are_one_request(run):
    _, _, calls = run('queued_resource.sh', 'create', PROJECT='p', SLICES='2', PRICE='')
    request = next(call for call in calls if 'queued-resources' in call)
    assert {'--node-count=2', '--node-prefix=samjax'} <= set(request)
    assert not {'', '--spot'} & set(request)
    _, _, calls = run('queued_resource.sh', 'create', PROJECT='p')
    request = next(call for call in calls if 'queued-resources' in call)
    assert {'--node-id=samjax', '--spot'} <= set(request)


@pytest.mark.parametrize(
    ('state', 'verbs'), [('ACTIVE', []), ('NOT_FOUND', ['create']), ('SUSPENDED', ['delete']), ('no network', [])]
)
def test_keep_asks_again_when_the_slices_are_gone(run, state, verbs):
    answers = {'describe': [state, 0], 'sleep': ['', 9], 'delete': ['', 9]}  # 9 ends the loop
    _, _, calls = run('queued_resource.sh', 'keep', answers=answers, PROJECT='p')
    assert [call[4] for call in calls if 'queued-resources' in call][1:][:1] == verbs


def test_xpk_starts_again_after_75(run):
    code, _, calls = run('xpk.sh', 'start', CHANGE, PROJECT='p', CONFIG='configs/quickstart.py')
    assert code == 0
    (call,) = calls
    options = dict(word.split('=', 1) for word in call if word.startswith('--'))
    assert '75' in options['--restart-on-exit-codes'].split(',')
    assert int(options['--max-restarts']) > 0
    assert options['--termination-grace-period-seconds'] == '120'
    words = shlex.split(options['--command'])
    assert words[:3] == ['exec', 'python', 'train.py']  # so that SIGTERM reaches Python
    check_options(words[3:])
    assert words[-1] == CHANGE


@pytest.mark.parametrize(('ended', 'requeued'), [(0, False), (1, False), (75, True), (130, False), (137, False)])
def test_slurm_queues_again_after_75_only(run, ended, requeued, tmp_path):
    slurm = {'SLURM_JOB_ID': '42', 'SLURM_JOB_NAME': 'h', 'SLURM_SUBMIT_DIR': str(tmp_path), 'SLURM_CPUS_PER_TASK': '8'}
    code, _, calls = run('slurm.sh', CHANGE, answers={'srun': ['', ended]}, CONFIG='configs/quickstart.py', **slurm)
    assert code == ended
    assert [call for call in calls if call[0] == 'scontrol'] == [['scontrol', 'requeue', '42']] * requeued
    arguments = after(calls[0], 'train.py')
    check_options(arguments)
    assert '--distributed' in arguments
    assert arguments[3] == f'{tmp_path}/runs/h'
    assert arguments[-1] == CHANGE


def test_slurm_asks_for_one_task_per_gpu_and_time_to_save():
    lines = re.findall(r'^#SBATCH --(.*)', (ROOT / 'launch' / 'slurm.sh').read_text(), re.MULTILINE)
    options = {name: value for name, _, value in (line.partition('=') for line in lines)}
    assert options['gpus-per-node'] == options['ntasks-per-node']
    assert 'gpus-per-task' not in options
    assert options['signal'] == 'TERM@120'
    assert {'requeue', 'nodes', 'time', 'output'} <= set(options)


def test_jobset_has_what_kubernetes_demands():
    claim, flavor, queue, local, jobset = yaml.safe_load_all((ROOT / 'launch' / 'jobset.yaml').read_text())
    kinds = [(file['apiVersion'], file['kind']) for file in (claim, flavor, queue, local, jobset)]
    assert kinds == [
        ('v1', 'PersistentVolumeClaim'),
        ('kueue.x-k8s.io/v1beta2', 'ResourceFlavor'),
        ('kueue.x-k8s.io/v1beta2', 'ClusterQueue'),
        ('kueue.x-k8s.io/v1beta2', 'LocalQueue'),
        ('jobset.x-k8s.io/v1alpha2', 'JobSet'),
    ]
    assert claim['spec']['accessModes'] == ['ReadWriteMany']
    assert isinstance(claim['spec']['resources']['requests']['storage'], str)
    (group,) = queue['spec']['resourceGroups']
    (quota,) = group['flavors']
    assert group['coveredResources'] == [resource['name'] for resource in quota['resources']] == ['google.com/tpu']
    assert quota['name'] == flavor['metadata']['name']
    assert local['spec']['clusterQueue'] == queue['metadata']['name']
    assert jobset['metadata']['labels']['kueue.x-k8s.io/queue-name'] == local['metadata']['name']

    (job,) = jobset['spec']['replicatedJobs']
    assert isinstance(job['name'], str)
    assert jobset['spec']['failurePolicy']['maxRestarts'] > 0
    hosts = job['template']['spec']
    assert hosts['backoffLimit'] == 0
    pod = hosts['template']['spec']
    assert pod['restartPolicy'] == 'Never'
    assert pod['terminationGracePeriodSeconds'] == 120
    (container,) = pod['containers']
    chips = container['resources']['limits']['google.com/tpu']
    x, y = map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'))
    assert hosts['parallelism'] == hosts['completions'] == x * y // chips
    assert quota['resources'][0]['nominalQuota'] == x * y * job['replicas']
    assert flavor['spec']['nodeLabels'].items() <= pod['nodeSelector'].items()
    (volume,) = pod['volumes']
    assert volume['persistentVolumeClaim']['claimName'] == claim['metadata']['name']
    (mount,) = container['volumeMounts']
    assert mount['name'] == volume['name']
    assert isinstance(container['image'], str)
    assert container['command'][:2] == ['python', 'train.py']
    check_options(container['command'][2:])
    paths = [word.partition('=')[2] for word in container['command'] if '=/' in word]
    assert len(paths) == 3
    assert all(path.startswith(mount['mountPath'] + '/') for path in paths)


def test_skypilot_task_has_what_its_schema_demands(tmp_path):
    task = yaml.safe_load((ROOT / 'launch' / 'skypilot.yaml').read_text())
    assert set(task) == {'name', 'resources', 'workdir', 'envs', 'setup', 'run'}
    resources = task['resources']
    assert set(resources) == {'infra', 'accelerators', 'accelerator_args', 'use_spot', 'job_recovery'}
    assert re.fullmatch(r'tpu-v\w+-\d+', resources['accelerators'])
    assert set(resources['accelerator_args']) == {'runtime_version'}
    assert resources['use_spot'] is True
    recovery = resources['job_recovery']
    assert set(recovery) == {'max_restarts_on_errors', 'recover_on_exit_codes'}
    assert recovery['recover_on_exit_codes'] == [75]
    assert all(isinstance(value, str | None) for value in task['envs'].values())
    for part in ('setup', 'run'):
        subprocess.run(['bash', '-n'], input=task[part], text=True, check=True)
        assert set(re.findall(r'\$(\w+)', task[part])) <= set(task['envs'])

    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    env = {name: value or '' for name, value in task['envs'].items()}
    env['EXTRA'] = '--config.seed=1 --config.train.batch_size=8'
    run = subprocess.run(['bash', '-c', task['run']], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    arguments = after(run.stdout.splitlines(), 'train.py')
    check_options(arguments)
    assert arguments[-2:] == ['--config.seed=1', '--config.train.batch_size=8']


def test_image_copies_what_train_py_needs():
    lines = [line.split() for line in (ROOT / 'launch' / 'Dockerfile').read_text().splitlines()]
    assert ['FROM', 'python:3.11-slim'] in lines
    copied = [source for line in lines if line[:1] == ['COPY'] for source in line[1:-1]]
    assert {'train.py', 'samjax', 'configs', 'requirements.txt'} <= set(copied)
    assert all((ROOT / source).exists() for source in copied)


def test_machines_of_the_files_are_the_same():
    """The slice, its software and the port stand in several files."""
    texts = {path.name: path.read_text() for path in FILES}
    for name in ('tpu_vm.sh', 'queued_resource.sh', 'skypilot.yaml'):
        assert 'v5litepod-16' in texts[name]
        assert 'v2-alpha-tpuv5-lite' in texts[name]
    for name in ('tpu_vm.sh', 'skypilot.yaml', 'Dockerfile'):
        assert 'JAX_COORDINATOR_PORT=8476' in texts[name]
