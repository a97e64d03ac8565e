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

import numpy as np
import pytest
from samples import add, content, encoded, mask, random_image, tree, write

from samjax.data.formats import sa1b
from samjax.data.formats.detect import open_index
from samjax.data.records import prepare as prepare_module
from samjax.data.records.prepare import Beam, PreparationReport, WorkState, prepare
from samjax.data.records.shard_writer import ShardTask, is_selected
from samjax.data.records.source import RecordSource, open_records
from samjax.errors import SamjaxError
from samjax.images.open import ImageOptions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def shards(tmp_path_factory):
    """Four tar shards of 30 images; an image is damaged."""
    folder = tmp_path_factory.mktemp('shards')
    for shard in range(4):
        with tarfile.open(folder / f'sa_{shard:06d}.tar', 'w') as tar:
            for number in range(30 * shard, 30 * shard + 30):
                image = encoded(random_image(number, 120, 160))
                add(tar, f'sa_{number}.jpg', image[:500] if number == 70 else image)
                masks = [mask(1 + number % 30, 2, 60, 90, 120, 160)] * 5
                add(tar, f'sa_{number}.json', json.dumps(content(masks, 120, 160)).encode())
    return folder


def run(shards, out, **options):
    return prepare(open_index(str(shards)), str(shards), out, **{'max_invalid_fraction': 0.05, **options})


@pytest.fixture(scope='module')
def whole(shards, tmp_path_factory):
    """What an undisturbed preparation by one process writes."""
    out = tmp_path_factory.mktemp('whole')
    run(shards, out, num_workers=1)
    return tree(out)


def test_report_and_names(shards, whole):
    [report] = (json.loads(data) for file, data in whole.items() if file.name == 'report.json')
    assert (report['layout'], report['num_images'], report['num_kept'], report['num_masks']) == ('SA-1B', 120, 119, 595)
    assert list(report['invalid']) == ['unreadable image']
    assert report['invalid']['unreadable image'][0].startswith('sa_000002.tar/sa_70: ')
    [names] = (data.decode().split() for file, data in whole.items() if file.name == 'images.txt')
    assert names[:2] == ['sa_000000.tar/sa_0', 'sa_000000.tar/sa_1']
    assert len(names) == 119
    assert sorted(file.name for file in whole if 'array_record' in file.name) == [
        f'object_masks-images.array_record-0000{n}-of-00004' for n in range(4)
    ]


def test_several_processes_give_the_same_bytes(shards, whole, tmp_path):
    run(shards, tmp_path, num_workers=3)
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
    command += ['--num-workers', '2', '--max-invalid-fraction', '0.05']
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

    def make_or_die(item, options):
        if item.name.endswith('/sa_45'):
            os.kill(os.getpid(), signal.SIGKILL)
        return make_record(item, options)

    record.make_record = make_or_die
    run(shards, out, num_workers=1)


def test_finished_shards_are_not_written_again(shards, whole, tmp_path):
    process = multiprocessing.get_context('spawn').Process(target=_write_and_die, args=(shards, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    work = tmp_path / 'unfinished'
    assert (work / '00000.json').exists()
    assert not (work / '00001.json').exists()
    assert list(work.glob('00001.*.part'))
    before = os.stat(work / '00000.array_record').st_mtime_ns
    run(shards, tmp_path, num_workers=1)
    assert tree(tmp_path) == whole
    first = next(tmp_path.rglob('*array_record-00000*'))
    assert os.stat(first).st_mtime_ns == before
    assert not work.exists()


def test_what_was_begun_of_another_set_is_dropped(shards, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, '_run', lambda *_: iter([]))
    with pytest.raises(SamjaxError, match='none of its 0 images can be used; training needs'):
        run(shards, tmp_path, fraction=0.5)
    (tmp_path / 'unfinished' / '00000.json').write_text('{"not": "known"}')
    monkeypatch.undo()
    run(shards, tmp_path)
    assert tree(tmp_path) == whole


def test_worker_that_is_killed_is_reported_and_the_rest_goes_on(shards, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, 'ShardTask', Deadly)
    with pytest.raises(SamjaxError, match='a process that prepared data was killed.* run the same command again'):
        run(shards, tmp_path, num_workers=2)
    monkeypatch.undo()
    run(shards, tmp_path, num_workers=2)
    assert tree(tmp_path) == whole


class Deadly(ShardTask):
    """Dies in the third shard."""

    def write(self):
        if self.stem.endswith('00002'):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write()


def test_subset_depends_on_names_alone_and_grows_with_the_fraction(shards, tmp_path):
    selected = {}
    for fraction in (0.2, 0.5):
        folder, report = run(shards, tmp_path / str(fraction), fraction=fraction, max_invalid_fraction=0.1)
        selected[fraction] = {name.split('/')[1] for name in (folder / 'images.txt').read_text().split()}
        assert report.num_kept == len(selected[fraction]) == len(RecordSource(folder))
        assert selected[fraction] == {f'sa_{n}' for n in range(120) if n != 70 and is_selected(f'sa_{n}', fraction)}
        assert abs(report.num_images - 120 * fraction) < 20
    assert selected[0.2] < selected[0.5]


def test_shards_by_number(shards, tmp_path):
    index = sa1b.open_shards(str(shards), '0,2-3')
    assert [shard.key for shard in index.shards] == ['sa_000000.tar', 'sa_000002.tar', 'sa_000003.tar']
    with pytest.raises(SamjaxError, match='no tar file for 2 of the 3 shards, such as number 4: it has 4'):
        sa1b.open_shards(str(shards), '3-5')
    with pytest.raises(SamjaxError, match="shards '1-' is not like 0-9,12"):
        sa1b.open_shards(str(shards), '1-')


def test_prepared_folder_is_a_data_path(shards, tmp_path):
    folder, _ = run(shards, tmp_path / 'out')
    for path in (tmp_path / 'out', folder):
        source = open_records(path, tmp_path / 'cache', 0.05)
        assert len(source) == 119
    assert not (tmp_path / 'cache').exists()
    with pytest.raises(SamjaxError, match='1 of 120 images are invalid'):
        open_records(folder, tmp_path / 'cache', 0.0)


def test_folder_that_holds_another_set(shards, tmp_path):
    run(shards, tmp_path / 'out')
    run(shards, tmp_path / 'out')  # the same: nothing to do
    with pytest.raises(SamjaxError, match='out holds another data set, or another state of'):
        run(shards, tmp_path / 'out', fraction=0.5)


def test_too_many_invalid_images_stop_it_and_nothing_is_lost(shards, whole, tmp_path):
    with pytest.raises(SamjaxError, match=r'1 of 90 images are invalid'):
        run(shards, tmp_path, max_invalid_fraction=0.0, num_workers=1)
    times = {file: os.stat(file).st_mtime_ns for file in (tmp_path / 'unfinished').glob('*.array_record')}
    assert len(times) == 3  # not the fourth
    run(shards, tmp_path)
    assert tree(tmp_path) == whole


def test_progress_has_images_and_fraction_of_the_work(shards, tmp_path):
    tasks = [
        ShardTask(shard, str(tmp_path / f'{n:05d}'), 1.0, ImageOptions())
        for n, shard in enumerate(open_index(str(shards)).shards)
    ]
    state = WorkState(tasks)
    assert state.measure() == (0, 0)
    tasks[0].write()
    (tmp_path / '00001.progress').write_text('[15, 30]')
    weights = [task.shard.weight for task in tasks]
    assert state.measure() == (45, (weights[0] + weights[1] / 2) / sum(weights))


def test_progress_of_a_continued_preparation_begins_with_what_was_done(shards, whole, tmp_path, monkeypatch):
    """Two of four shards are finished and a third was being written: that one begins again."""
    index = open_index(str(shards))
    prepare_module._open_work_folder(tmp_path / 'unfinished', index, 1.0)
    for n in (1, 2):
        ShardTask(index.shards[n], str(tmp_path / 'unfinished' / f'{n:05d}'), 1.0, ImageOptions()).write()
    (tmp_path / 'unfinished' / '00003.progress').write_text('[15, 30]')
    begun, shown = [], []

    class Spy(prepare_module.Progress):
        def __init__(self, title, total=None, **options):
            begun.append((title, total, options))
            super().__init__(title, total, **options)
            self.interval = 0.01

        def update(self, count, fraction=None):
            shown.append((count, fraction))

    monkeypatch.setattr(prepare_module, 'Progress', Spy)
    run(shards, tmp_path, num_workers=1)
    weights = [shard.weight for shard in index.shards]
    [(title, total, options)] = begun
    assert (title, total, options['count']) == (f'preparing {shards}', None, 60)
    assert options['fraction'] == pytest.approx((weights[1] + weights[2]) / sum(weights))
    assert shown == sorted(shown)
    assert all(60 <= count <= 120 and options['fraction'] <= fraction <= 1 for count, fraction in shown)
    assert tree(tmp_path) == whole


NEW_FIELDS = ('warnings', 'read_as', 'num_scaled', 'options', 'ignored', 'images_by_layout')


def test_report_of_version_0_1_is_read(shards, tmp_path):
    folder, report = run(shards, tmp_path / 'out')
    written = json.loads((folder / 'report.json').read_text())
    names = {new: old for old, new in prepare_module.OLD_FIELDS.items()}
    old = {names.get(name, name): value for name, value in written.items() if name not in NEW_FIELDS}
    assert list(old) == ['path', 'layout', 'digest', 'share', 'found', 'kept', 'masks', 'bad', 'no_masks', 'left_out']
    (folder / 'report.json').write_text(json.dumps(old))
    report = report._replace(images_by_layout={})  # which that version did not count
    assert PreparationReport.read(folder) == report
    assert run(shards, tmp_path / 'out') == (folder, report)
    assert len(open_records(folder, tmp_path / 'cache', 0.05)) == 119


def test_command_says_what_it_did(shards, tmp_path):
    command = [sys.executable, '-m', 'samjax', 'data', 'sa1b', '--source', str(shards), '--shards', '0,2']
    command += ['--out', str(tmp_path / 'out'), '--max-invalid-fraction', '0.05']
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=100)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f'{tmp_path}/out/object_masks/2.0.0: 59 images with 295 masks, 0.0')
    assert lines[1] == 'left out 1 of 60 images: 1 unreadable image'
    assert lines[-1] == f'train with --config.data.path={tmp_path}/out'
    command[command.index('0.05')] = '0'
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f'error: {shards}: 1 of 60 images are invalid')
    assert len(failed.stderr.splitlines()) == 1


def test_invalid_images_stop_it_early_only_when_the_rest_cannot_make_up_for_them():
    report = PreparationReport('x', 'SA-1B', '', 1.0, 100, 98, 980, {'no JSON': ['a: b', 'c: d']}, [])
    report.check(0.01, scale=2.0)  # 2 of about 200
    with pytest.raises(SamjaxError, match=r'x: 2 of 100 images are invalid \(2 no JSON\), .* the first is a: b'):
        report.check(0.01, scale=1.9)


# ---- damaged files of a prepared set -----------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """The folder of the records of two images."""
    for name in ('x', 'yy'):
        write(tmp_path / 'source', name)
    index = open_index(str(tmp_path / 'source'))
    folder, _ = prepare(index, 'source', tmp_path / 'out', max_invalid_fraction=0, num_workers=1)
    return folder


def refusal(folder):
    with pytest.raises(SamjaxError) as error:
        open_records(folder, 'cache', 0.0)
    message = str(error.value)
    assert message.startswith(str(folder))
    assert message.endswith(': remove the folder, and prepare the data set again')
    return message


@pytest.mark.parametrize(
    'change',
    [
        {'num_kept': 3},
        {'num_images': '2'},
        {'num_kept': -2},
        {'digest': None},
        {'fraction': []},
        {'invalid': []},
        {'invalid': {'wrong size': 'x'}},
        {'no_masks': [1]},
        {'skipped_masks': {'crowd': 'x'}},
        {'skipped_masks': {'crowd': [1, 2]}},
        {'read_as': {'binary': None}},
        {'other': 1},
    ],
)
def test_report_with_damaged_fields(small, change):
    report = json.loads((small / 'report.json').read_text())
    (small / 'report.json').write_text(json.dumps(report | change))
    assert 'report.json is not what this version of `samjax data prepare` writes (' in refusal(small)


@pytest.mark.parametrize('data', [b'', b'{', b'[]', b'\xff', b'{"path": 1}', b'[' * 100_000])
def test_report_that_is_none(small, data):
    (small / 'report.json').write_bytes(data)
    assert 'report.json is not what this version of `samjax data prepare` writes (' in refusal(small)


def test_report_of_other_records(small):
    report = json.loads((small / 'report.json').read_text())
    (small / 'report.json').write_text(json.dumps(report | {'num_images': 1, 'num_kept': 1}))
    assert f'{small} has 2 records, and report.json says 1' in refusal(small)


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
@pytest.mark.parametrize('data', [b'', b'{', b'[]', b'{"splits": 1}', b'\xff'])
def test_damaged_description_of_the_records(small, name, data):
    (small / name).write_bytes(data)
    assert f'{small} cannot be read (' in refusal(small)


def test_features_that_would_read_other_numbers(small):
    file = small / 'features.json'
    text = file.read_text()
    assert text.count('"int32"') == 4
    file.write_text(text.replace('"int32"', '"int64"', 1))
    assert f'{small} has other features than `samjax data prepare` writes' in refusal(small)


def test_scores_that_are_no_numbers(tmp_path):
    wrong = content()
    for annotation, score in zip(wrong['annotations'], (float('nan'), 10**400, 0.25), strict=True):
        annotation['predicted_iou'] = score
    write(tmp_path / 'source', 'x', json_content=wrong)
    index = open_index(str(tmp_path / 'source'))
    folder, report = prepare(index, 'source', tmp_path / 'out', max_invalid_fraction=0, num_workers=1)
    assert report.warnings == {'score that is no number, stored as 1': (2, 'x: predicted_iou of mask 0')}
    assert report.num_masks == 3
    annotations = RecordSource(folder)._records[0]['annotations']
    np.testing.assert_array_equal(annotations['predicted_iou'], np.float32([1, 1, 0.25]))
