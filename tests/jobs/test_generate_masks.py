"""`samjax masks` writes the same files if it is interrupted, runs in several processes, or meets damaged images."""

import errno
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from samples import add, encoded, files, jpeg, random_image, record, smooth, tree, write

from samjax.cli import main as command
from samjax.cli.check_dataset import check
from samjax.data.formats.detect import open_index
from samjax.data.formats.read_options import ReadOptions
from samjax.data.records.prepare import prepare
from samjax.errors import SamjaxError
from samjax.images.open import ImageOptions
from samjax.inference.automatic.generator import PRESETS, AmgConfig
from samjax.jobs import generate_masks as module
from samjax.jobs.generate_masks import MaskReport, generate_masks
from samjax.jobs.model import JobModel
from samjax.jobs.output_folder import HIDDEN, REPORT
from samjax.storage.lock import try_lock

SETTINGS = AmgConfig(points_per_side=4, points_per_batch=8, pred_iou_thresh=0.0, stability_score_thresh=0.0)


class Rectangles:
    """A generator that returns rectangles, as many as the first red value of an image modulo 4."""

    shapes = []  # of the images so far

    def __init__(self, predictor, config, output_mode):
        pass

    def generate(self, image_HW3):
        self.shapes.append(image_HW3.shape)
        size = image_HW3.shape[:2]
        return [record(n, 2 * n, n + 5, 2 * n + 7, size) for n in range(image_HW3[0, 0, 0] % 4)]


@pytest.fixture(scope='module')
def job_model(model):
    return JobModel.read(Path(model))


@pytest.fixture
def rectangles(monkeypatch, job_model):
    """The shapes of the images that `Rectangles` processes in the place of SAM."""
    monkeypatch.setattr(JobModel, 'read', lambda path: job_model)
    monkeypatch.setattr(JobModel, 'predictor', lambda *_: None)
    monkeypatch.setattr(module, 'AutomaticMaskGenerator', Rectangles)
    monkeypatch.setattr(Rectangles, 'shapes', [])
    return Rectangles.shapes


def image(number, masks, height=24, width=40):
    """An image for which `Rectangles` returns so many masks, at most 3."""
    image_HW3 = np.array(random_image(number, height, width))
    image_HW3[0, 0, 0] = masks
    return Image.fromarray(image_HW3)


@pytest.fixture
def images(tmp_path):
    """Five images with 3, 1, 0, 2 and 3 masks."""
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for number, (name, count) in enumerate([('a', 3), ('b', 1), ('c', 0), ('sub/d', 2), ('sub/e', 3)]):
        image(number, count, 24 + number).save(folder / f'{name}.png')
    return folder


# ---- what is written -------------------------------------------------------------------------------


def test_report_counts_images_and_masks(images, tmp_path, model, rectangles):
    report = generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)
    assert (report.num_images, report.num_valid, report.num_without_masks, report.num_masks) == (5, 5, 1, 9)
    assert report.invalid == {}
    assert report.fingerprint['settings']['points_per_side'] == 4
    assert MaskReport.read(tmp_path / 'out' / REPORT) == report
    assert files(tmp_path / 'out') == sorted(
        [REPORT, *(f'{name}.{end}' for name in ('a', 'b', 'c', 'sub/d', 'sub/e') for end in ('json', 'png'))]
    )
    assert json.loads((tmp_path / 'out/sub/e.json').read_text())['image']['height'] == 28


@pytest.mark.parametrize('form', ['sa1b', 'coco', 'png'])
def test_output_is_a_data_set_without_fault(images, tmp_path, model, rectangles, form, caplog, capsys):
    (images / 'c.png').unlink()  # has no mask, which the check would report
    generate_masks([str(images)], model, tmp_path / 'out', form, SETTINGS)
    caplog.clear()  # Orbax warns of what it does for us
    lines = list(check(str(tmp_path / 'out'), str(tmp_path / 'cache'), tmp_path / 'sheet.png', ReadOptions()))
    assert lines[1:3] == [
        'images: 4; 4 can be used, 0 have no mask, 0 are invalid',
        'masks: 9; least, median and most per image: 1, 2, 3',
    ]
    assert lines[-2].startswith('all causes with names')
    assert not [line for line in lines if 'left out' in line]
    assert not caplog.records
    if form == 'coco':
        assert len(COCO(tmp_path / 'out/instances.json').getAnnIds()) == 9


def test_invalid_images_are_named_and_the_others_done(images, tmp_path, model, rectangles):
    (images / 'b.png').write_bytes((images / 'b.png').read_bytes()[:300])
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(images / 'x.png')
    report = generate_masks([str(images)], model, tmp_path / 'out', 'coco', SETTINGS)
    assert (report.num_images, report.num_valid, report.num_masks) == (6, 4, 8)
    assert report.summary() == '1 unreadable image, 1 not 8 bits'
    assert report.invalid['unreadable image'][0].startswith(f'{images}/b.png: ')
    assert MaskReport.read(tmp_path / 'out' / REPORT) == report
    content = json.loads((tmp_path / 'out/instances.json').read_text())
    assert [entry['id'] for entry in content['images']] == [1, 3, 5, 6]


def test_every_kind_of_input_at_once(tmp_path, model, rectangles):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'rotated.jpg').write_bytes(jpeg(smooth(20, 40), exif=exif))
    (tmp_path / 'one').mkdir()
    (tmp_path / 'two').mkdir()
    image(1, 2).convert('RGBA').save(tmp_path / 'one/x.png')
    image(2, 3).save(tmp_path / 'two/x.webp', lossless=True)
    with tarfile.open(tmp_path / 'set.tar', 'w') as tar:
        add(tar, 'in/y.jpg', encoded(random_image(3)))
    write(tmp_path / 'set', 'z')
    prepare(open_index(str(tmp_path / 'set')), 'set', tmp_path / 'prepared', max_invalid_fraction=0.0, num_workers=1)
    inputs = [str(tmp_path / name) for name in ('rotated.jpg', 'one', 'two', 'set.tar', 'prepared')]
    report = generate_masks(inputs, model, tmp_path / 'out', 'sa1b', SETTINGS)
    assert report.num_valid == 5
    title = tmp_path.name  # two inputs have an x, so all names begin with their input
    image_files = [file for file in files(tmp_path / 'out') if file.endswith(('.jpg', '.png'))]
    assert image_files == sorted([f'{title}/rotated.png', 'one/x.png', 'two/x.png', 'set/in/y.jpg', 'prepared/z.jpg'])
    assert (tmp_path / 'out/prepared/z.jpg').read_bytes() == (tmp_path / 'set/z.jpg').read_bytes()
    assert sorted(rectangles) == sorted([(40, 20, 3), *[(24, 40, 3)] * 4])
    with Image.open(tmp_path / 'out' / title / 'rotated.png') as rotated:
        assert rotated.size == (20, 40)


def test_no_mask_anywhere(tmp_path, model, rectangles):
    (tmp_path / 'images').mkdir()
    image(1, 0).save(tmp_path / 'images/a.png')
    for form in ('sa1b', 'coco', 'png', 'overlay'):
        report = generate_masks([str(tmp_path / 'images')], model, tmp_path / form, form, SETTINGS)
        assert (report.num_valid, report.num_without_masks, report.num_masks) == (1, 1, 0)


# ---- resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize('form', ['sa1b', 'coco', 'png', 'overlay'])
def test_full_disk_is_one_sentence_and_the_same_command_goes_on(images, tmp_path, model, rectangles, form):
    generate_masks([str(images)], model, tmp_path / 'whole', form, SETTINGS)
    replaced, replace = [], os.replace

    def full(source, target):
        replaced.append(HIDDEN not in Path(target).parts)
        if sum(replaced) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    rectangles.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'replace', full)
        with pytest.raises(
            SamjaxError, match=r'out cannot be written \(No space left on device\): free some space, then'
        ):
            generate_masks([str(images)], model, tmp_path / 'out', form, SETTINGS, devices=1)
    assert (tmp_path / 'out' / HIDDEN).is_dir()
    done = len(rectangles) - 1
    rectangles.clear()
    generate_masks([str(images)], model, tmp_path / 'out', form, SETTINGS)
    assert len(rectangles) == 5 - done < 5
    assert tree(tmp_path / 'out') == tree(tmp_path / 'whole')


def test_finished_run_is_not_done_again(images, tmp_path, model, rectangles):
    report = generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)
    before = tree(tmp_path / 'out')
    (tmp_path / 'out' / HIDDEN).mkdir()  # killed while it was removed
    rectangles.clear()
    assert generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS) == report
    assert not rectangles
    assert tree(tmp_path / 'out') == before
    assert not (tmp_path / 'out' / HIDDEN).exists()


def test_points_per_batch_may_change_in_between(images, tmp_path, model, rectangles):
    generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)
    rectangles.clear()
    generate_masks(
        [str(images)], model, tmp_path / 'out', 'sa1b', AmgConfig(**{**vars(SETTINGS), 'points_per_batch': 2})
    )
    assert not rectangles


# ---- with SAM itself -------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def start(tmp_path_factory, model):
    """A function that starts `samjax masks` on 24 images, given the folder for the output and more options."""
    folder = tmp_path_factory.mktemp('many')
    (folder / 'images').mkdir()
    for number in range(24):
        random_image(number, 30, 40).save(folder / f'images/{number:02}.png')

    def start(out, *more, devices=1):
        settings = ['--points-per-side=8', '--pred-iou-thresh=0', '--stability-score-thresh=0', '--box-nms-thresh=0.9']
        words = ['masks', str(folder / 'images'), '--model', model, '--out', str(out), '--format=coco', *settings]
        flags = f'--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}'
        return subprocess.Popen(
            [sys.executable, '-m', 'samjax', *words, *more],
            env=os.environ | {'XLA_FLAGS': flags, 'HOME': str(folder)},  # a compilation cache of its own
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process):
    """Its output."""
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return text


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
    """The files of a single process with one device that was not interrupted."""
    out = tmp_path_factory.mktemp('whole')
    finish(start(out))
    return tree(out)


def test_killed_and_run_again_gives_the_same_bytes(start, whole, tmp_path):
    journal = tmp_path / HIDDEN / 'process_0.jsonl'
    for results in (1, 8):
        process = start(tmp_path)
        while not journal.exists() or journal.read_text().count('\n') < results:
            assert process.poll() is None
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert not (tmp_path / 'instances.json').exists()
    text = finish(start(tmp_path))
    assert tree(tmp_path) == whole
    count = len(json.loads(whole[Path('instances.json')])['annotations'])
    assert text == f'{tmp_path}: {count} masks of 24 images\n'
    assert count > 24


def test_devices_and_processes_write_what_one_writes(start, whole, tmp_path):
    """Two processes, of which each has two devices."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    job = [f'--coordinator=localhost:{port}', '--processes=2']
    processes = [start(tmp_path, *job, f'--process={n}', devices=2) for n in range(2)]
    texts = [finish(process) for process in processes]
    assert ['masks of 24 images' in text for text in texts] == [True, False]  # Gloo prints, too
    assert tree(tmp_path) == whole


# ---- mistakes in one sentence ----------------------------------------------------------------------


def test_output_that_holds_something_else_is_refused(images, tmp_path, model, rectangles):
    def refusal(out='out', output_format='sa1b', config=SETTINGS):
        with pytest.raises(SamjaxError) as error:
            generate_masks([str(images)], model, tmp_path / out, output_format, config)
        return str(error.value).replace(str(tmp_path), 'TMP')

    generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)
    before = tree(tmp_path / 'out')
    assert (
        refusal(output_format='png')
        == 'TMP/out holds masks of other format: choose another --out, or remove that folder'
    )
    assert refusal(config=PRESETS['sa1b']).startswith('TMP/out holds masks of other settings: ')
    image(9, 1).save(images / 'new.png')
    assert refusal(output_format='png').startswith('TMP/out holds masks of other images and format: ')
    assert tree(tmp_path / 'out') == before
    (tmp_path / 'out' / REPORT).write_text('my own\n')
    assert refusal() == 'TMP/out is not empty, it holds sub: choose another --out'
    (tmp_path / 'file').write_text('')
    assert refusal('file') == 'TMP/file is no folder that can be written (File exists): choose another --out'
    assert refusal('images/sub/out').startswith('TMP/images/sub/out is within TMP/images, where the images are: ')
    assert not (images / 'sub/out').exists()


def test_unfinished_run_of_another_command_is_refused(images, tmp_path, model, rectangles, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.mask_formats, 'write', fail)
        with pytest.raises(KeyboardInterrupt):
            generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)
    with pytest.raises(SamjaxError, match='out holds an unfinished run of other format: choose another --out'):
        generate_masks([str(images)], model, tmp_path / 'out', 'coco', SETTINGS)
    generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)


def test_only_one_command_writes_to_a_folder(images, tmp_path, model, rectangles):
    (tmp_path / 'out').mkdir()
    with try_lock(tmp_path / 'out') as is_locked:
        assert is_locked
        with pytest.raises(SamjaxError, match='another process writes to .*out: wait for it'):
            generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)
    generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)


def test_only_invalid_images_are_an_error_that_can_be_fixed(tmp_path, model, rectangles):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.png').write_bytes(b'no image')
    reason = r'\(1 unreadable image\), the first is .*/images/a.png.* \(unreadable image\): name others'
    with pytest.raises(SamjaxError, match=f'none of the 1 images can be used {reason}'):
        generate_masks([str(tmp_path / 'images')], model, tmp_path / 'out', 'coco', SETTINGS)
    image(1, 2).save(tmp_path / 'images/a.png')
    assert generate_masks([str(tmp_path / 'images')], model, tmp_path / 'out', 'coco', SETTINGS).num_masks == 2


def test_full_memory_of_the_device_says_what_to_lower(images, tmp_path, model, rectangles, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.')

    monkeypatch.setattr(Rectangles, 'generate', fail)
    with pytest.raises(
        SamjaxError, match='png: the memory of the device is full: give fewer --points-per-batch than 8'
    ):
        generate_masks([str(images)], model, tmp_path / 'out', 'sa1b', SETTINGS)


def test_unknown_format_or_model(images, tmp_path, model):
    with pytest.raises(SamjaxError, match="the format 'gif' is not known: choose one of sa1b, coco, png, overlay"):
        generate_masks([str(images)], model, tmp_path / 'out', 'gif', SETTINGS)
    with pytest.raises(SamjaxError, match='nowhere'):
        generate_masks([str(images)], str(tmp_path / 'nowhere'), tmp_path / 'out', 'sa1b', SETTINGS)
    assert not (tmp_path / 'out').exists()


# ---- the command -----------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of `generate_masks`, which returns a report of five images."""
    calls = []
    report = MaskReport(5, {'unreadable image': ['a.png: cut'], 'not 8 bits': ['b.png: I;16']}, {}, 1, 9)
    monkeypatch.setattr(module, 'generate_masks', lambda *arguments: calls.append(arguments) or report)
    monkeypatch.setattr(jax.config, 'update', lambda *_: None)
    return calls


def test_flags_override_the_preset(calls, capsys):
    words = ['masks', 'a.jpg', 'b', '--model', 'm', '--out', 'o']
    command.main(words)
    command.main([*words, '--preset=sa1b', '--points-per-side=64', '--format=png', '--no-drop-small-masks'])
    command.main([*words, '--max-mask-fraction=.5', '--devices=1', '--drop-small-masks', '--min-mask-region-area=0'])
    command.main([*words, '--bit-depth-range=0,4095', '--max-pixels=9000'])
    assert calls[0] == (['a.jpg', 'b'], 'm', Path('o'), 'sa1b', PRESETS['original'], 0, ImageOptions())
    expected = AmgConfig(**{**vars(PRESETS['sa1b']), 'points_per_side': 64, 'drop_small_masks': False})
    assert calls[1][3:] == ('png', expected, 0, ImageOptions())
    assert calls[2][4:] == (AmgConfig(max_mask_fraction=0.5, drop_small_masks=True), 1, ImageOptions())
    assert calls[3][6] == ImageOptions((0.0, 4095.0), 9000)
    assert capsys.readouterr().out.splitlines()[:4] == [
        'o: 9 masks of 3 images',
        '1 images have no mask',
        'left out 2 of 5 images: 1 unreadable image, 1 not 8 bits',
        'report.jsonl there names what was left out and why',
    ]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--points-per-side=0'], 'points_per_side is 0: give at least 1'),
        (['--pred-iou-thresh=88'], 'pred_iou_thresh is 88.0: give a fraction between 0 and 1'),
        (['--processes=2'], '--processes and --process need --coordinator'),
    ],
)
def test_mistakes_are_one_line(calls, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        command.main(['masks', 'a.jpg', '--model', 'm', '--out', 'o', *words])
    assert stop.value.code == 1
    assert message in capsys.readouterr().err
    assert not calls
