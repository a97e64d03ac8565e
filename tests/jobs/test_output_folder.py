"""The report of a command on many images, and the keys of its file, which stay as they are."""

import json

from samjax.jobs.generate_masks import MaskReport
from samjax.jobs.output_folder import REPORT, ImageReport, OutputFolder

LINES = [
    {'found': 4, 'bad': {'unreadable image': 2, 'not 8 bits': 1}, 'stamp': {'images': 'abc'}, 'without': 0, 'masks': 3},
    {'cause': 'unreadable image', 'image': 'a.png: cut'},
    {'cause': 'unreadable image', 'image': 'b.png: cut'},
    {'cause': 'not 8 bits', 'image': 'c.png: I;16'},
]
RESULTS = [
    {'cause': 'unreadable image', 'detail': 'a.png: cut'},
    {'masks': 3},
    {'cause': 'unreadable image', 'detail': 'b.png: cut'},
    {'cause': 'not 8 bits', 'detail': 'c.png: I;16'},
]


def test_report_is_written_and_read_under_fixed_keys(tmp_path):
    report = MaskReport.from_results(RESULTS, {'images': 'abc'})
    assert (report.num_images, report.num_valid, report.num_invalid) == (4, 1, 3)
    assert (report.num_masks, report.num_without_masks) == (3, 0)
    assert report.summary() == '2 unreadable image, 1 not 8 bits'
    assert list(map(json.loads, report.lines())) == LINES
    (tmp_path / REPORT).write_text(''.join(f'{line}\n' for line in report.lines()))
    assert MaskReport.read(tmp_path / REPORT) == report


def test_what_is_no_report_of_this_kind_is_none(tmp_path):
    file = tmp_path / REPORT
    assert ImageReport.read(file) is None
    for text in ('', 'text', '[]', '1', '{}', json.dumps(LINES[0]), json.dumps({'found': 1, 'bad': {}, 'stamp': {}})):
        file.write_text(text)
        assert (ImageReport.read(file) is None) == ('without' in text or 'found' not in text)
        assert (MaskReport.read(file) is None) == ('without' not in text)


def test_files_and_folders_replace_earlier_ones(tmp_path):
    output = OutputFolder(tmp_path / 'out', tmp_path / 'out' / '.unfinished')
    output.write_file('a/x', b'1')
    output.write_file('a/x', b'2')
    output.write_folder('b', {'1': b'', '2': b''})
    output.write_folder('b', {'3': b'4'})
    files = {file.relative_to(tmp_path / 'out').as_posix() for file in tmp_path.rglob('*') if file.is_file()}
    assert files == {'a/x', 'b/3'}
    assert (tmp_path / 'out/a/x').read_bytes() == b'2'
