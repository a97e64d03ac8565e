"""Preparation gives the same bytes however it is run and however often it is killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from samples import add, content, encoded, mask, picture, tree

from samjax.data.formats import sa1b
from samjax.data.formats.detect import find
from samjax.data.records import prepare as prepare_module
from samjax.data.records.prepare import Beam, Progress, Report, prepare
from samjax.data.records.shard_writer import Task, is_taken
from samjax.data.records.source import Source, open_source
from samjax.errors import SamjaxError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """Four tar shards of 30 images; one image is broken."""
    folder = tmp_path_factory.mktemp('shards')
    for shard in range(4):
        with tarfile.open(folder / f'sa_{shard:06d}.tar', 'w') as tar:
            for number in range(30 * shard, 30 * shard + 30):
                image = encoded(picture(number, 120, 160))
                add(tar, f'sa_{number}.jpg', image[:500] if number == 70 else image)
                masks = [mask(1 + number % 30, 2, 60, 90, 120, 160)] * 5
                add(tar, f'sa_{number}.json', json.dumps(content(masks, 120, 160)).encode())
    return folder


def run(shards, out, **options):
    return prepare(find(str(shards)), str(shards), out, **{'max_invalid_fraction': 0.05, **options})


@pytest.fixture(scope='module')
def whole(shards, tmp_path_factory):
    """What an undisturbed preparation by one process writes."""
    out = tmp_path_factory.mktemp('whole')
    run(shards, out, workers=1)
    return tree(out)


def test_report_and_names(shards, whole):
    [report] = (json.loads(data) for file, data in whole.items() if file.name == 'report.json')
    assert (report['layout'], report['found'], report['kept'], report['masks']) == ('SA-1B', 120, 119, 595)
    assert list(report['bad']) == ['unreadable image']
    assert report['bad']['unreadable image'][0].startswith('sa_000002.tar/sa_70: ')
    [names] = (data.decode().split() for file, data in whole.items() if file.name == 'images.txt')
    assert names[:2] == ['sa_000000.tar/sa_0', 'sa_000000.tar/sa_1']
    assert len(names) == 119
    assert sorted(file.name for file in whole if 'array_record' in file.name) == [
        f'object_masks-images.array_record-0000{n}-of-00004' for n in range(4)
    ]


def test_several_processes_give_the_same_bytes(shards, whole, tmp_path):
    run(shards, tmp_path, workers=3)
    assert tree(tmp_path) == whole


def test_beam_gives_the_same_bytes(shards, whole, tmp_path):
    run(shards, tmp_path, beam=Beam('DirectRunner', []))
    assert tree(tmp_path) == whole


def test_beam_that_is_not_installed(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    with pytest.raises(SamjaxError, match='Apache Beam is not installed: pip install apache-beam'):
        run(shards, tmp_path, beam=Beam('DirectRunner', []))


def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(shards, whole, tmp_path):
    """SIGKILL to the process that started the others: they end by themselves."""
    command = [sys.executable, '-m', 'samjax', 'data', 'prepare', '--source', str(shards), '--out', str(tmp_path)]
    command += ['--workers', '2', '--max-bad-share', '0.05']
    kills = []
    for moment in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob('unfinished/*.part')):
            time.sleep(0.002)
        time.sleep(moment)
        workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
        process.kill()
        kills.append(process.wait())
        end = time.monotonic() + 20
        while any(Path(f'/proc/{worker}').exists() for worker in workers):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert kills[0] == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=100)
    assert tree(tmp_path) == whole


def _write_and_die(shards, out):
    """As if killed in the second shard, in the middle of an image."""
    from samjax.data.records import record

    make_record = record.make_record

    def make_or_die(item):
        if item.name.endswith('/sa_45'):
            os.kill(os.getpid(), signal.SIGKILL)
        return make_record(item)

    record.make_record = make_or_die
    run(shards, out, workers=1)


def test_finished_units_are_not_written_again(shards, whole, tmp_path):
    process = multiprocessing.get_context('spawn').Process(target=_write_and_die, args=(shards, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    work = tmp_path / 'unfinished'
    assert (work / '00000.json').exists()
    assert not (work / '00001.json').exists()
    assert list(work.glob('00001.*.part'))
    before = os.stat(work / '00000.array_record').st_mtime_ns
    run(shards, tmp_path, workers=1)
    assert tree(tmp_path) == whole
    first = next(tmp_path.rglob('*array_record-00000*'))
    assert os.stat(first).st_mtime_ns == before
    assert not work.exists()


def test_what_was_begun_of_another_set_is_dropped(shards, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, '_run', lambda *_: iter([]))
    with pytest.raises(SamjaxError, match='none of the 0 images found can be used; training needs'):
        run(shards, tmp_path, share=0.5)
    (tmp_path / 'unfinished' / '00000.json').write_text('{"not": "ours"}')
    monkeypatch.undo()
    run(shards, tmp_path)
    assert tree(tmp_path) == whole


def test_worker_that_is_killed_is_said_and_the_rest_goes_on(shards, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, 'Task', Deadly)
    with pytest.raises(SamjaxError, match='a process that prepared data was killed.* run the same command again'):
        run(shards, tmp_path, workers=2)
    monkeypatch.undo()
    run(shards, tmp_path, workers=2)
    assert tree(tmp_path) == whole


class Deadly(Task):
    """Dies in the third shard."""

    def write(self):
        if self.stem.endswith('00002'):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write()


def test_subset_depends_on_names_alone_and_grows_with_the_share(shards, tmp_path):
    taken = {}
    for share in (0.2, 0.5):
        folder, report = run(shards, tmp_path / str(share), share=share, max_invalid_fraction=0.1)
        taken[share] = {name.split('/')[1] for name in (folder / 'images.txt').read_text().split()}
        assert report.kept == len(taken[share]) == len(Source(folder))
        assert taken[share] == {f'sa_{n}' for n in range(120) if n != 70 and is_taken(f'sa_{n}', share)}
        assert abs(report.found - 120 * share) < 20
    assert taken[0.2] < taken[0.5]


def test_some_shards(shards, tmp_path):
    found = sa1b.find_shards(str(shards), '0,2-3')
    assert [shard.key for shard in found.shards] == ['sa_000000.tar', 'sa_000002.tar', 'sa_000003.tar']
    with pytest.raises(SamjaxError, match='no tar file for 2 of the 3 shards, such as number 4: it has 4'):
        sa1b.find_shards(str(shards), '3-5')
    with pytest.raises(SamjaxError, match="shards '1-' is not like 0-9,12"):
        sa1b.find_shards(str(shards), '1-')


def test_prepared_folder_is_a_data_path(shards, tmp_path):
    folder, _ = run(shards, tmp_path / 'out')
    for path in (tmp_path / 'out', folder):
        source = open_source(path, tmp_path / 'cache', 0.05)
        assert len(source) == 119
    assert not (tmp_path / 'cache').exists()
    with pytest.raises(SamjaxError, match='1 of 120 images are bad'):
        open_source(folder, tmp_path / 'cache', 0.0)


def test_folder_that_holds_another_set(shards, tmp_path):
    run(shards, tmp_path / 'out')
    run(shards, tmp_path / 'out')  # the same: nothing to do
    with pytest.raises(SamjaxError, match='out holds another set, or another state of'):
        run(shards, tmp_path / 'out', share=0.5)


def test_too_many_bad_images_stop_it_and_nothing_is_lost(shards, whole, tmp_path):
    with pytest.raises(SamjaxError, match=r'1 of 90 images are bad'):
        run(shards, tmp_path, max_invalid_fraction=0.0, workers=1)
    times = {file: os.stat(file).st_mtime_ns for file in (tmp_path / 'unfinished').glob('*.array_record')}
    assert len(times) == 3  # not the fourth
    run(shards, tmp_path)
    assert tree(tmp_path) == whole


def test_progress_says_count_rate_share_and_time_left(shards, tmp_path, monkeypatch):
    tasks = [Task(shard, str(tmp_path / f'{n:05d}'), 1.0) for n, shard in enumerate(find(str(shards)).shards)]
    progress = Progress('preparing x', tasks)
    monkeypatch.setattr(prepare_module.time, 'monotonic', lambda: 100.0)
    with progress:
        pass
    tasks[0].write()
    (tmp_path / '00001.progress').write_text('[15, 30]')
    monkeypatch.setattr(prepare_module.time, 'monotonic', lambda: 145.0)
    text = progress.line()
    share = sum(task.shard.weight for task in tasks[:1]) + tasks[1].shard.weight / 2
    share /= sum(task.shard.weight for task in tasks)
    left = int((1 - share) / share * 45)
    assert text == f'preparing x: 45 images, 1.0/s, {share:.0%}, 0:{left // 60:02}:{left % 60:02} left'


def test_command_says_what_it_did(shards, tmp_path):
    command = [sys.executable, '-m', 'samjax', 'data', 'sa1b', '--source', str(shards), '--shards', '0,2']
    command += ['--out', str(tmp_path / 'out'), '--max-bad-share', '0.05']
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=100)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f'{tmp_path}/out/object_masks/2.0.0: 59 images with 295 masks, 0.0')
    assert lines[1] == 'left out 1 of 60 images: 1 unreadable image'
    assert lines[-1] == f'train with --config.data.path={tmp_path}/out'
    command[command.index('0.05')] = '0'
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f'error: {shards}: 1 of 60 images are bad')
    assert len(failed.stderr.splitlines()) == 1


def test_bad_images_stop_it_early_only_when_the_rest_cannot_make_up_for_them():
    report = Report('x', 'SA-1B', '', 1.0, 100, 98, 980, {'no JSON': ['a: b', 'c: d']}, [], {})
    report.check(0.01, whole=2.0)  # 2 of about 200
    with pytest.raises(SamjaxError, match=r'x: 2 of 100 images are bad \(2 no JSON\), .* the first is a: b'):
        report.check(0.01, whole=1.9)
