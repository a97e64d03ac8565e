"""A mask file -> COCO RLE: one object or one for each number or colour, as the picture itself shows.

A picture is one of these (`ReadOptions.mask_kind` overrules):

- binary: at most one level but 0, which is one object.
- soft, an object whose edges are anti-aliased, blurred or compressed: a pixel belongs to it from half of its level on.
  Such edges pass through the levels between 0 and that of the object.  So nearly each pixel of a level in between lies
  on a slope, brighter than one of two opposite neighbours and darker than the other, and hardly any has neighbours of
  its own level all around, as an area with a number has: see `_is_soft`.  Colours count if all are shades of one.
- labels, an object for each number or colour but 0 and void: everything else, and what has a palette of colours.
- unclear, such as a photograph: more than `MANY_VALUES` values in pieces of a pixel or two.  It is refused.

The limits were chosen on generated pictures (shapes of many kinds and sizes from 20 to 400 px, anti-aliased, blurred,
resized and compressed, and label maps of cells, disks, rings, lines and VOC's outlines), on the cells of BBBC038 and
on the segments of BSDS500.  What is read wrongly has few pixels in between, of a single level.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from samjax.errors import InvalidExample
from samjax.images.file import MAX_PIXELS, check_png, num_images, open_file
from samjax.images.open import EIGHT_BIT, more_than_8_bits, why_unreadable
from samjax.masks.rle import encode, encode_labels

FORMATS = ('PNG', 'GIF', 'BMP', 'TIFF', 'JPEG', 'WEBP')
VOID = 255
MANY_VALUES = 64
LOWEST_OBJECT_LEVEL = 24  # of a soft mask; numbers of objects are often lower
EXACT_FLOATS = 2**24  # float32 holds every integer up to this
STRIP_PIXELS = 2**18  # that are compared with their neighbours at a time: they fit the cache

BINARY = 'one object (binary)'
SOFT = 'one object (soft edges, from half of its level on)'
LABELS = 'an object per number (label map)'
COLOURS = 'an object per colour (label map)'
EMPTY = 'no object (empty)'


class MaskPicture(NamedTuple):
    """What a mask file holds."""

    size: tuple[int, int]  # height and width in px
    rles: list[dict]  # one for each object, in the order of the numbers or colours
    read_as: str  # such as BINARY
    skipped_masks: list[str] = []  # causes, see `AnnotatedImage`
    warnings: list[str] = []


def read_mask(file: str, kind: str = 'auto', one_object: bool = False, max_pixels: int = MAX_PIXELS) -> MaskPicture:
    """Reads a mask file.

    kind: one of `MASK_KINDS`; one_object: whether other files hold the other objects of the image: several values are
    then soft edges, or else parts of the object.

    Raises:
        InvalidExample: the file is damaged, holds several pictures or more than `max_pixels`, cannot be told from a
            photograph, or has values that are no numbers of objects.
    """
    pixels = _decoded(file, max_pixels)
    values_HW = pixels.values_HW
    values, counts = _histogram(values_HW)
    if not np.any(values):
        return MaskPicture(values_HW.shape, [], EMPTY, ['no pixels'])
    if values_HW.dtype.kind == 'f' and kind in ('auto', 'labels'):
        shown = ', '.join(f'{value:g}' for value in values[values % 1 != 0][:3])
        detail = f'{file} has {shown}: save integers, or set mask_kind = soft or binary'
        raise InvalidExample('fractional labels', detail)
    if kind != 'labels' and np.count_nonzero(values) == 1:
        return _whole(values_HW != 0, BINARY)
    levels_HW = _levels(pixels, values, counts)
    if kind == 'soft' or (kind == 'binary' and pixels.is_lossy):
        levels_HW = pixels.rgb_HW3.max(-1) if levels_HW is None else levels_HW
        return _whole(2 * levels_HW.astype(np.float64) >= levels_HW.max(), SOFT)
    if kind == 'binary':
        return _whole(values_HW != 0, BINARY)
    if pixels.is_opacity:
        return _whole(2 * values_HW.astype(int) >= values[-1], SOFT)
    edges = _edges(pixels, levels_HW)
    if pixels.is_lossy and (kind == 'labels' or edges.has_areas or pixels.has_several_colours):
        detail = (
            f'{file} is a JPEG, whose compression mixes the values of several objects: save a PNG with one value per '
            'object, or set mask_kind = binary or soft if it is one object'
        )
        raise InvalidExample('unclear mask', detail)
    is_one = kind == 'auto' and (pixels.is_lossy or _is_soft(edges, one_object))
    if len(values) > MANY_VALUES and (
        (kind == 'auto' and edges.is_photograph) or (edges.mid > 0.75 * values_HW.size if is_one else edges.is_noise)
    ):
        detail = (
            f'{file} has {np.count_nonzero(values)} different colours in small pieces, like a photograph: save it as a '
            'PNG with one value per object, or set mask_kind = soft or binary if it is one object'
        )
        raise InvalidExample('unclear mask', detail)
    if is_one:
        warnings = []
        if not pixels.is_lossy and not one_object and edges.num_mid_levels <= 2 and not edges.noise:
            warnings.append('could also be a label map with thin objects (mask_kind = labels), is read as one object')
        if not pixels.is_lossy and edges.noise and edges.flat_low > 0.1 * edges.nonzero:
            warnings.append('areas of low values are taken for noise of compression (mask_kind = labels reads them)')
        if edges.mid > 0.4 * values_HW.size:
            warnings.append('more than 40 % of the pixels of a soft mask are between the background and the object')
        return _whole(2 * levels_HW.astype(int) >= edges.level, SOFT, warnings)
    if one_object and kind == 'auto':
        return _whole(values_HW != 0, BINARY, ['several values in the file of one object, are read as one'])
    return _labelled(pixels, values, edges)


def _whole(mask_HW: np.ndarray, read_as: str, warnings: list[str] | None = None) -> MaskPicture:
    return MaskPicture(mask_HW.shape, [encode(mask_HW)], read_as, [], warnings or [])


def _labelled(pixels: Pixels, values: np.ndarray, edges: Edges) -> MaskPicture:
    """An object for each value but 0 and void."""
    rles = encode_labels(pixels.values_HW)
    rles.pop(0, None)
    skipped_masks, warnings = [], []
    if _has_void(pixels, values):
        del rles[VOID]
        skipped_masks.append(f'void (value {VOID})')
    if len(rles) > 1 and max(rles) == 65535 and np.diff(sorted(rles))[-1] > 1:
        warnings.append('value 65535 is read as an object, and may be void')
    if edges.between > max(0.15 * edges.edge, 16):
        warnings.append(
            'values in between along the edges of objects, as if a label map was resized with interpolation (use '
            'nearest neighbour) or an object was smoothed (mask_kind = soft)'
        )
    read_as = LABELS if pixels.rgb_HW3 is None or pixels.is_palette else COLOURS
    return MaskPicture(pixels.values_HW.shape, list(rles.values()), read_as, skipped_masks, warnings)


def _has_void(pixels: Pixels, values: np.ndarray) -> bool:
    """Whether 255 is the last of several numbers, as the void of VOC, DAVIS and Cityscapes.

    Greys that are evenly spread, such as 85, 170 and 255, are objects: no step is more than twice another, or they are
    at least half of 255/n, 2 * 255/n, .. for an n up to MANY_VALUES.
    """
    numbers = values[values != 0].astype(int)
    count = len(numbers)
    if count < 2 or numbers[-1] != VOID:
        return False
    if pixels.is_palette:
        return True
    steps = np.diff(numbers, prepend=0)
    return steps.max() > 2 * steps.min() and not any(
        (np.abs(numbers - VOID / n * np.maximum(np.rint(numbers * n / VOID), 1)) <= 1).all()
        for n in range(count, min(2 * count, MANY_VALUES) + 1)
    )


# ---- decoding ------------------------------------------------------------------------------------------------------


class Pixels(NamedTuple):
    """A decoded mask file."""

    values_HW: np.ndarray  # 0 is background; colours are `_colour_numbers`
    rgb_HW3: np.ndarray | None = None  # uint8, of a picture with colours
    is_palette: bool = False  # the values are numbers of colours
    is_lossy: bool = False  # JPEG: all values are a little off
    has_several_colours: bool = False  # of a picture that is lossy
    is_opacity: bool = False  # the values are the opacity of a single colour


def _decoded(file: str, max_pixels: int) -> Pixels:
    try:
        with open_file(Path(file), FORMATS, max_pixels) as image:
            if (count := num_images(image)) > 1:
                detail = f'{file} has {count} images: save one file per object'
                raise InvalidExample('several images in a file', detail)
            deep = image.mode in EIGHT_BIT and more_than_8_bits(image)
            if image.format == 'PNG':
                check_png(image)
            image.load()
    except InvalidExample as error:
        detail = error.detail if error.detail.startswith(file) else f'{file}: {error.detail}'
        raise InvalidExample(error.cause, detail) from error
    except Exception as error:  # pillow raises nearly anything on damaged files
        raise InvalidExample('unreadable mask', f'{file}: {why_unreadable(error, _beginning(file))}') from error
    if deep:
        detail = f'{file}: its pixels are {deep}: save it with 8 bits per channel, or as grey with a number per object'
        raise InvalidExample('not 8 bits', detail)
    image.info.pop('transparency', None)  # how the image is to be shown; pillow would warn
    if image.format in ('JPEG', 'MPO'):
        rgb_HW3 = np.asarray(image.convert('RGB'))
        return Pixels(rgb_HW3.max(-1), is_lossy=True, has_several_colours=_has_several_colours(rgb_HW3))
    if image.mode == 'P':
        return _of_palette(image)
    if image.mode in EIGHT_BIT and image.mode not in ('1', 'L'):
        return _of_colours(image)
    values_HW = np.asarray(image)
    return Pixels(_checked(file, values_HW) if values_HW.dtype.kind in 'if' else values_HW)


def _has_several_colours(rgb_HW3: np.ndarray) -> bool:
    """Whether the bright parts of a JPEG differ in colour, by more than compression changes along edges."""
    bright_N3 = rgb_HW3[2 * rgb_HW3.max(-1).astype(int) >= rgb_HW3.max()]
    return bool((np.ptp(np.percentile(bright_N3, (10, 90), axis=0), axis=0) > 96).any())


def _beginning(file: str) -> bytes:
    try:
        with open(file, 'rb') as opened:
            return opened.read(16)
    except OSError:
        return b'unreadable'


def _checked(file: str, values_HW: np.ndarray) -> np.ndarray:
    """Values of more than 8 bits, as integers unless there are fractions.  Raises InvalidExample."""
    if not np.isfinite(values_HW).all():
        detail = f'{file} has values that are NaN or infinite: replace them by 0, the background'
        raise InvalidExample('labels that are not finite', detail)
    if values_HW.min() < 0:
        shown = ', '.join(f'{value:g}' for value in np.unique(values_HW[values_HW < 0])[:3])
        detail = f'{file} has {shown}: number objects from 1, the background is 0'
        raise InvalidExample('negative labels', detail)
    if values_HW.dtype.kind == 'f':
        if (values_HW % 1).any():
            return values_HW
        if values_HW.max() > EXACT_FLOATS:
            detail = f'{file} has {values_HW.max():g}, more than floating point tells apart: save integers'
            raise InvalidExample('fractional labels', detail)
        values_HW = values_HW.astype(np.int32)
    return values_HW.astype(np.uint16) if values_HW.max() < 2**16 else values_HW


def _of_palette(image: Image.Image) -> Pixels:
    colours = image.convert('RGB').getcolors(256)
    if colours is not None and all(red == green == blue for _, (red, green, blue) in colours):
        grey_HW = np.asarray(image.convert('L'))
        if {colour for _, (colour, _, _) in colours} <= {0, 255}:  # either may be number 0 of the palette
            return Pixels(grey_HW)
        greys = Pixels(grey_HW)
        if _is_soft(_edges(greys, grey_HW)):
            return greys
    return Pixels(np.asarray(image), np.asarray(image.convert('RGB')), is_palette=True)


def _of_colours(image: Image.Image) -> Pixels:
    """Of an image with colours or opacity.  Transparent is background; a constant opacity has no meaning."""
    pixels_HW4 = np.ascontiguousarray(image.convert('RGBA'))
    opacity_HW, rgb_HW3 = pixels_HW4[..., 3], pixels_HW4[..., :3]
    numbers_HW = _colour_numbers(pixels_HW4)
    if opacity_HW.min() < opacity_HW.max():
        visible = numbers_HW[opacity_HW > 0]
        if visible.min() == visible.max():
            return Pixels(opacity_HW, is_opacity=True)
        rgb_HW3 = np.where(opacity_HW[..., None] > 0, rgb_HW3, 0)
        numbers_HW = np.where(opacity_HW > 0, numbers_HW, 0)
    if (rgb_HW3 == rgb_HW3[..., :1]).all():
        return Pixels(np.ascontiguousarray(rgb_HW3[..., 0]))
    return Pixels(numbers_HW, rgb_HW3)


def _colour_numbers(pixels_HW4: np.ndarray) -> np.ndarray:
    """uint32: 0 for black, else R + 256 G + 256^2 B and, lest red 255 be void, 255 in the highest byte."""
    colour_HW = pixels_HW4.view('<u4')[..., 0] & 0xFFFFFF
    return np.where(colour_HW, colour_HW | 0xFF000000, 0)


# ---- levels and edges ----------------------------------------------------------------------------------------------


def _histogram(values_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values in rising order, and how many pixels each has."""
    if values_HW.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values_HW.ravel())
        values = np.flatnonzero(counts)
        return values, counts[values]
    flat = values_HW.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    values, run = np.unique(flat[starts], return_inverse=True)
    return values, np.bincount(run, np.diff(starts, append=flat.size)).astype(int)


def _levels(pixels: Pixels, values: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """(H, W) of brightness where the picture is grey, or has shades of one colour; else None.

    values, counts: see `_histogram`.
    """
    if pixels.rgb_HW3 is None:
        return pixels.values_HW
    if pixels.is_palette or len(values) > 1024:
        return None
    colours_C3 = np.stack([values >> shift & 255 for shift in (0, 8, 16)], -1).astype(int)
    brightness_C = colours_C3.sum(-1)
    object_3 = colours_C3[np.where(brightness_C >= 0.7 * brightness_C.max(), counts, 0).argmax()]
    channel = object_3.argmax()
    shades_C3 = colours_C3[:, channel, None] * object_3 / object_3[channel]
    overshoot_C = np.maximum(brightness_C / object_3.sum() - 1, 0)  # of a filter, where one channel may be clipped
    tolerance_C3 = np.where(object_3, 6 + 255 * overshoot_C[:, None], 0)  # each is rounded, perhaps repeatedly
    no_shade_C = (np.abs(colours_C3 - shades_C3) > tolerance_C3).any(-1) | (colours_C3[:, channel] < colours_C3.max(-1))
    if no_shade_C.any():
        return None
    return np.ascontiguousarray(pixels.rgb_HW3[..., channel])


class Edges(NamedTuple):
    """How the pixels of a picture compare with their 8 neighbours, in numbers of pixels.

    `level` is that of the object, if the picture is soft: the highest, or, if a filter overshoots, the most frequent of
    the high ones.  Levels from 12 to 88 % of it are in the middle.
    """

    pixels: int
    nonzero: int
    flat: int  # equal to all neighbours
    edge: int  # the others
    between: int  # between two opposite neighbours, in all channels, and unlike both
    unequal_pairs: int  # of pixels beside or above each other, without background
    level: int = 0
    noise: int = 0  # by how much compression changes the level and 0: 4, or 0 if there is no sign of it
    num_mid_levels: int = 0
    mid: int = 0
    mid_between: int = 0  # without those that are higher than both opposite neighbours in three of four directions
    mid_extreme: int = 0  # brighter or darker than all neighbours
    over: int = 0  # more than 112 % of the level
    plateau: int = 0  # in the middle or over, with all neighbours within 2 % of the level
    tail: int = 0  # neither 0, the level nor in the middle; without the noise of JPEG
    tail_between: int = 0
    tail_high: int = 0  # from 88 % of the level
    flat_tail: int = 0
    flat_low: int = 0  # up to 12 % of the level, but not 0
    flat_high: int = 0  # from 88 % of it, with all neighbours within 2 %

    @property
    def has_areas(self) -> bool:
        """Whether areas of levels in the middle are there, at least a block of JPEG."""
        return self.plateau > max(0.2 * (self.mid + self.over), 64)

    @property
    def is_noise(self) -> bool:
        """Whether most pixels differ from those beside and above them."""
        return self.unequal_pairs > 1.05 * self.nonzero

    @property
    def is_photograph(self) -> bool:
        """Whether there are small bright and dark spots all over the picture, and few even areas.

        Of 75 photographs of BSDS500 and 100 of cells in BBBC038, nearly all have less than a third of even areas, and
        1 % or more of the pixels in the middle are such spots.
        """
        few_areas = self.flat < 0.35 * self.pixels and self.unequal_pairs > 0.5 * self.nonzero
        return few_areas and self.mid > 0.02 * self.pixels and self.mid_extreme > max(0.008 * self.mid, 5)


def _edges(pixels: Pixels, levels_HW: np.ndarray | None) -> Edges:
    """levels_HW: see `_levels`; without them, everything from `level` on is 0."""
    measured = dict.fromkeys(Edges._fields, 0)
    level, noise = 0, 0
    if levels_HW is not None and levels_HW.dtype in (np.uint8, np.uint16):
        counts = np.bincount(levels_HW.ravel())
        level, noise = _object_level(counts, levels_HW.dtype)
        positions = np.flatnonzero(counts)
        is_mid = (positions > 0.12 * level) & (positions < 0.88 * level)
        measured['num_mid_levels'] = int(is_mid.sum())
    by_value = pixels.rgb_HW3 is None or pixels.is_palette
    channels = [pixels.values_HW] if by_value else [*np.moveaxis(pixels.rgb_HW3, -1, 0)]
    height, width = pixels.values_HW.shape
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = slice(max(top - 1, 0), min(top + rows + 1, height))
        inner = slice(top - strip.start, min(top + rows, height) - strip.start)
        part = _strip_edges(
            pixels.values_HW[strip],
            [channel[strip] for channel in channels],
            None if not level else levels_HW[strip],
            inner,
            level,
            noise,
        )
        for name, count in part.items():
            measured[name] += int(count)
    measured['pixels'], measured['level'], measured['noise'] = pixels.values_HW.size, level, noise
    measured['edge'] = measured['pixels'] - measured['flat']
    return Edges(**measured)


def _object_level(counts: np.ndarray, dtype: np.dtype) -> tuple[int, int]:
    """`Edges.level` and `Edges.noise`.  Compression leaves levels near 0 and near that of the object."""
    level = len(counts) - 1
    first = int(np.ceil(0.7 * level))
    commonest = first + int(counts[first:].argmax())
    near = counts[int(np.ceil(0.88 * commonest)) : int(1.12 * commonest) + 1].sum()
    width = max(2, commonest // 25)
    if 2 * counts[max(commonest - width, 0) : commonest + width + 1].sum() >= near:
        level = commonest
    if dtype != np.uint8 or level < 64:
        return level, 0
    is_noisy = counts[1:9].any() and np.count_nonzero(counts[level - 8 : level + 9]) > 1
    return level, 4 if is_noisy else 0


def _strip_edges(
    values_HW: np.ndarray,
    channels: list[np.ndarray],
    levels_HW: np.ndarray | None,
    inner: slice,
    level: int,
    noise: int,
) -> dict[str, int]:
    """The counts of `Edges` for the rows `inner` of a strip; beyond the picture, the nearest pixel is repeated."""
    counts = {}
    values_HW, around = values_HW[inner], _neighbours(values_HW, inner)
    pairs = [(around[first], around[7 - first]) for first in range(4)]
    between_HW = np.zeros(values_HW.shape, bool)
    channel_pairs = [
        (channel[inner], [(n[first], n[7 - first]) for first in range(4)])
        for channel, n in ((channel, _neighbours(channel, inner)) for channel in channels)
    ]
    for direction, (one, other) in enumerate(pairs):
        within_HW = (values_HW != one) & (values_HW != other)
        for channel_HW, opposite in channel_pairs:
            a, b = opposite[direction]
            within_HW &= (np.minimum(a, b) <= channel_HW) & (channel_HW <= np.maximum(a, b))
        between_HW |= within_HW
    flat_HW = np.ones(values_HW.shape, bool)
    for channel_HW, opposite in channel_pairs:
        neighbours = [n for pair in opposite for n in pair]
        for n in neighbours:
            flat_HW &= channel_HW == n
    counts['nonzero'] = np.count_nonzero(values_HW)
    counts['between'], counts['flat'] = between_HW.sum(), flat_HW.sum()
    counts['unequal_pairs'] = sum(
        ((values_HW != n) & (values_HW != 0) & (n != 0)).sum() for n in (around[1], around[3])
    )
    if levels_HW is None:
        return counts
    around = _neighbours(levels_HW, inner)
    levels_HW = levels_HW[inner]
    low_HW, high_HW = np.minimum.reduce(around), np.maximum.reduce(around)
    range_HW = np.maximum(high_HW, levels_HW) - np.minimum(low_HW, levels_HW)
    mid_HW = (levels_HW > 0.12 * level) & (levels_HW < 0.88 * level)
    over_HW = levels_HW > 1.12 * level
    at_level_HW = (levels_HW >= level - noise) & (levels_HW <= level + noise)
    tail_HW = (levels_HW > noise) & ~mid_HW & ~over_HW & ~at_level_HW
    counts['mid'], counts['over'], counts['tail'] = mid_HW.sum(), over_HW.sum(), tail_HW.sum()
    counts['mid_extreme'] = (mid_HW & ((levels_HW < low_HW) | (levels_HW > high_HW))).sum()
    peaks_HW = np.zeros(levels_HW.shape, np.uint8)
    for first in range(4):
        peaks_HW += (levels_HW > around[first]) & (levels_HW > around[7 - first])
    counts['mid_between'] = (mid_HW & between_HW & (peaks_HW < 3)).sum()
    counts['tail_between'] = (tail_HW & between_HW).sum()
    counts['tail_high'] = (tail_HW & (levels_HW > 0.12 * level)).sum()
    counts['plateau'] = ((mid_HW | over_HW) & (range_HW <= 0.02 * level)).sum()
    counts['flat_low'] = ((levels_HW > 0) & (levels_HW <= 0.12 * level) & (range_HW == 0)).sum()
    counts['flat_high'] = ((levels_HW >= 0.88 * level) & (range_HW <= 0.02 * level)).sum()
    counts['flat_tail'] = (tail_HW & (range_HW == 0)).sum()
    return counts


def _neighbours(values_HW: np.ndarray, rows: slice) -> list[np.ndarray]:
    """The 8 neighbours of the pixels in some rows, in reading order: the first is opposite to the last."""
    height, width = rows.stop - rows.start, values_HW.shape[1]
    missing = (1 - rows.start if rows.start < 1 else 0, 1 if rows.stop == len(values_HW) else 0)
    padded = np.pad(values_HW, (missing, (1, 1)), mode='edge')
    return [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]


def _is_soft(edges: Edges, one_object: bool = False) -> bool:
    """Whether this is an object with smoothed edges rather than a map of labels.

    one_object: whether it is known to be one: only areas of another level then speak against it.
    """
    if edges.level < LOWEST_OBJECT_LEVEL or edges.plateau > 0.2 * (edges.mid + edges.over):
        return False
    if edges.flat_tail > max(2 * edges.mid, 0.2 * edges.tail):  # areas of low numbers, or of numbers near the highest
        return False
    if (
        4 * edges.flat_high < edges.flat_low < 10 * (edges.pixels - edges.nonzero)
        and edges.flat_low > 0.2 * edges.nonzero
    ):
        return False  # areas of low numbers with outlines of void, resized with interpolation
    if one_object:
        return True
    if not edges.mid and not edges.noise:  # nothing in between: thin objects whose numbers are near each other
        return False
    if edges.level > VOID and edges.mid > 0.3 * edges.pixels:  # thousands of cells of a few pixels each
        return False
    if edges.noise and edges.tail >= 10 * edges.mid:
        return True
    if edges.level < 64 and edges.num_mid_levels < 8:
        return False
    sloped, others = edges.mid_between, edges.mid
    if edges.tail > 10 * edges.mid and edges.tail_high > 0.1 * edges.tail:
        sloped, others = sloped + edges.tail_between, others + edges.tail
    return sloped >= 0.45 * others > 0
