import pathlib

import pytest

from samjax.errors import SamjaxError
from samjax.storage.local_path import refuse_address


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('gs://bucket/x', 'is in a bucket, .* mount the bucket'),
        (pathlib.Path('gs://bucket/x'), '^gs:/bucket/x is in a bucket'),
        ('GS://bucket', 'is in a bucket'),
        ('s3a://bucket/x', 'is in a bucket'),
        ('https://host/x.pth', 'is an address, not a path: download it, and name the file'),
        ('file:///data/x', 'is an address, not a path: leave out file://'),
    ],
)
def test_addresses_are_refused(path, message):
    with pytest.raises(SamjaxError, match=message):
        refuse_address(path)


@pytest.mark.parametrize(
    'path', ['', 'x.pth', '/data/x', '~/x', 'C:/x', 'tfds:coco@train', 'host:8476', 'a b://x', 'x/gs://y', 'bucket:x']
)
def test_paths_are_not(path):
    refuse_address(path)
