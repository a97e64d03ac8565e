"""Images, masks and files for tests of several modules."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

from benchmarks.sa1b_like import as_annotation
from samjax.cli.main import main
from samjax.masks import rle

HEIGHT, WIDTH = 24, 40


def random_image(number, height=HEIGHT, width=WIDTH):
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def encoded(image, suffix='.jpg'):
    data = io.BytesIO()
    image.save(data, 'PNG' if suffix == '.png' else 'JPEG')
    return data.getvalue()


def mask(top, left, bottom, right, height=HEIGHT, width=WIDTH):
    mask_HW = np.zeros((height, width), np.uint8, order='F')
    mask_HW[top:bottom, left:right] = 1
    return mask_HW


MASKS = [mask(2, 3, 9, 20), mask(0, 0, HEIGHT, WIDTH), mask(5, 30, 6, 31)]


def content(masks=MASKS, height=HEIGHT, width=WIDTH):
    annotations = [as_annotation(number, mask_HW) for number, mask_HW in enumerate(masks)]
    image = {'image_id': 1, 'width': width, 'height': height, 'file_name': 'x.jpg'}
    return {'image': image, 'annotations': annotations}


def write(folder, name, suffix='.jpg', image=None, json_content=None):
    """Writes an image with its JSON in the layout of SA-1B; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f'{name}{suffix}', folder / f'{name}.json'
    files[0].write_bytes(encoded(image or random_image(len(name)), suffix))
    files[1].write_text(json.dumps(json_content or content()))
    return files


def jpeg(image, **options):
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=95, **options)
    return data.getvalue()


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x + 90], -1).astype(np.uint8))


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tree(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def record(top, left, bottom, right, size=(24, 40)):
    """A rectangle as `samjax masks` writes it."""
    mask_HW = np.zeros(size, bool)
    mask_HW[top:bottom, left:right] = True
    return {
        'segmentation': rle.as_text(rle.encode(mask_HW)),
        'area': int(mask_HW.sum()),
        'bbox': [float(left), float(top), float(right - left - 1), float(bottom - top - 1)],
        'predicted_iou': 0.9,
        'point_coords': [[left + 0.5, top + 0.25]],
        'stability_score': 0.97,
        'crop_box': [0.0, 0.0, float(size[1]), float(size[0])],
    }


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob('*') if file.is_file())


def check(path, tmp_path, capsys):
    main(['data', 'check', str(path), '--cache', str(tmp_path / 'cache'), '--sheet', str(tmp_path / 'sheet.png')])
    with Image.open(tmp_path / 'sheet.png') as sheet:
        return capsys.readouterr().out.splitlines(), np.asarray(sheet)


def png_of_16_bits(values_HWC):
    """A PNG of grey (H, W), grey and opacity (.., 2), RGB (.., 3) or RGBA (.., 4), which pillow cannot write."""
    height, width, *channels = values_HWC.shape
    colour_type = {(): 0, (2,): 4, (3,): 2, (4,): 6}[tuple(channels)]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in values_HWC)

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 16, colour_type, 0, 0, 0)
    chunks = chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows)), chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def saved(image, image_format, **options):
    """The bytes of an image file."""
    data = io.BytesIO()
    image.save(data, image_format, **options)
    return data.getvalue()
