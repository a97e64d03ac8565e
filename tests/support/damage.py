"""Seeded damage to files, as bad disks, cut transfers and careless scripts do it, and what a reader makes of it."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from samjax.errors import InvalidExample, SamjaxError

SECONDS = 60  # for one file; reading takes milliseconds
MEMORY = 2 << 30  # bytes of address space, beyond what the process has
NESTED = '\x00nested'  # a place for lists in lists, which json.dumps cannot write

# Outcomes
EQUAL, DIFFERENT, COUNTED, REFUSED = 'read equal', 'read otherwise', 'counted', 'refused'


class Fault(Exception):
    """What must not happen."""


class Reading(NamedTuple):
    """What was read, in a form that can be compared, and what was counted as left out or suspicious."""

    content: object
    counted: tuple[str, ...] = ()


class Reader(NamedTuple):
    """A kind of file."""

    write: Callable[[Path], Path]  # writes valid input into an empty folder and returns the file to be damaged
    read: Callable[[Path], Reading]  # of that folder; raises SamjaxError or InvalidExample
    has_checksum: bool = False  # the format tells of any damage to the content


# ---- damage ----------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random, suffix: str) -> bytes:
    """Another content of a file; half of those of a JSON file are valid JSON."""
    if suffix in ('.json', '.jsonl') and rng.random() < 0.5:
        lines = data.decode().splitlines() if suffix == '.jsonl' else [data.decode()]
        number = rng.randrange(len(lines))
        lines[number] = _damaged_json(lines[number], rng)
        return '\n'.join(lines).encode('utf-8', 'surrogatepass')
    return _damaged_bytes(data, rng)


def _damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        size = len(changed)
        at, length = rng.randrange(size + 1), rng.choice([1, 1, 2, 4, 16, 64, 512])
        # The beginning of a file decides about the rest.
        at = rng.randrange(min(size, 64) + 1) if rng.random() < 0.3 else at
        match rng.choice(['cut', 'flip', 'flip', 'byte', 'byte', 'insert', 'delete', 'repeat', 'zero', 'swap']):
            case 'cut':
                del changed[at:]
            case 'flip' if at < size:
                changed[at] ^= 1 << rng.randrange(8)
            case 'byte' if at < size:
                changed[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            case 'insert':
                changed[at:at] = rng.randbytes(length)
            case 'delete':
                del changed[at : at + length]
            case 'repeat':
                changed[at:at] = changed[at : at + length] * rng.choice([1, 1, 3])
            case 'zero':
                changed[at : at + length] = bytes(len(changed[at : at + length]))
            case 'swap':
                other = rng.randrange(size + 1)
                first, second = changed[at : at + length], changed[other : other + length]
                changed[at : at + length], changed[other : other + length] = second, first
    return bytes(changed)


VALUES = (
    *(None, True, False, 0, 1, -1, -7, 1.5, 0.1, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**400),
    *(1e308, -1e308, 1e-320, float('nan'), float('inf'), float('-inf')),
    *('', '0', '1', '1.0', 'x', 'nan', '..', '/', '../..', 'x' * 5000, 'ü', '\ud800', '\0', 'a\nb', '../x.jpg'),
    *([], {}, [[]], [None], {'x': 1}, [0] * 6, [[0, 0, 1, 1]], NESTED),
)


def _damaged_json(text: str, rng: random.Random) -> str:
    content = json.loads(text)
    for _ in range(rng.choice([1, 1, 2, 4])):
        slots = list(_slots(content))
        if not slots:
            break
        holder, key = rng.choice(slots)
        if not (key in holder if isinstance(holder, dict) else key < len(holder)):
            continue
        value = holder[key]
        match rng.choice(['drop', 'value', 'value', 'value', 'number', 'swap', 'repeat', 'type', 'rename']):
            case 'drop':
                del holder[key]
            case 'value':
                holder[key] = copy.deepcopy(rng.choice(VALUES))
            case 'number' if type(value) in (int, float):
                holder[key] = rng.choice([-value, value + 1, value - 1, value * 2, value * 1000, value + 0.5])
            case 'swap':
                other, its_key = rng.choice(slots)
                if its_key in other if isinstance(other, dict) else its_key < len(other):
                    holder[key], other[its_key] = copy.deepcopy((other[its_key], value))
            case 'repeat' if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(value))
            case 'type':
                holder[key] = rng.choice([str(value), [value], {'x': value}, float(value) if _is_small(value) else 0])
            case 'rename' if isinstance(holder, dict):
                holder[rng.choice([key.upper(), key + 's', 'x', ''])] = holder.pop(key)
    nested = '[' * 100_000 + ']' * 100_000
    return json.dumps(content, ensure_ascii=rng.random() < 0.5).replace(json.dumps(NESTED), nested)


def _is_small(value) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300


def _slots(content) -> Iterator[tuple[dict | list, str | int]]:
    """Every holder with a key or index of it."""
    entries = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in entries[:50]:
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _slots(value)


# ---- judgement -------------------------------------------------------------------------------------


class _TooLong(BaseException):
    """Not caught by readers that catch Exception."""


def _stop(signal_number, frame):
    raise _TooLong


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Reading that takes more than `SECONDS` or `MEMORY` fails."""
    in_use = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def outcome(reader: Reader, folder: Path, original: Reading) -> str:
    """How a damaged file is read.  Raises Fault."""
    try:
        with limits(), warnings.catch_warnings(action='error'):
            warnings.filterwarnings('ignore', '__array__ implementation', DeprecationWarning)  # pycocotools, numpy 2
            warnings.filterwarnings('ignore', r'label\(\) is deprecated', DeprecationWarning)  # TFDS
            reading = reader.read(folder)
    except (SamjaxError, InvalidExample) as error:
        _check_message(str(error) if isinstance(error, SamjaxError) else f'{error.cause}: {error.detail}')
        return REFUSED
    except _TooLong:
        raise Fault(f'takes more than {SECONDS} s') from None
    except BaseException:
        raise Fault(traceback.format_exc()) from None
    for message in reading.counted:
        _check_message(message)
    if reading.counted != original.counted:
        return COUNTED
    if reading.content == original.content:
        return EQUAL
    if reader.has_checksum:
        raise Fault('content changed without a word')
    return DIFFERENT


def _check_message(message: str) -> None:
    """A sentence that can be printed, is the same in each run, and has a reason."""
    wrong = {
        'the address of an object': re.search(r' at 0x[0-9a-f]+', message),
        'several lines': '\n' in message.strip(),
        'too long': len(message) > 1500,
        'control characters': re.search(r'[\x00-\x08\x0b-\x1f\x7f]', message),
        'half a character': re.search(r'[\ud800-\udfff]', message),
        'no reason': re.search(r'\(\)(: |$)|:\s*$', message),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise Fault(f'{what} in the message: {message[:500]!r}')


def attempts(reader: Reader, folder: Path, seed: int, count: int) -> Iterator[tuple[int, str]]:
    """Number and outcome of `count` damaged files, a fault as its description.

    The damaged file stays in `folder` until the next is written, also if the process is killed.
    """
    folder.mkdir(parents=True)
    file = reader.write(folder)
    data, original = file.read_bytes(), reader.read(folder)
    assert reader.read(folder) == original
    for number in range(count):
        rng = random.Random(f'{seed} {number}')
        changed = damaged(data, rng, file.suffix)
        file.write_bytes(changed)
        try:
            result = EQUAL if changed == data else outcome(reader, folder, original)
        except Fault as fault:
            result = f'FAULT {fault}'
        yield number, result


def main() -> None:
    """python tests/support/damage.py FOLDER SEED COUNT [READER ..]: counts outcomes and keeps the files with faults."""
    import collections
    import shutil

    from readers import READERS

    out, seed, count, *names = sys.argv[1:]
    for name in names or READERS:
        folder, counts, kinds = Path(out) / name, collections.Counter(), collections.Counter()
        shutil.rmtree(folder, ignore_errors=True)
        for number, result in attempts(READERS[name], folder / 'now', int(seed), int(count)):
            (folder / 'number').write_text(str(number + 1))
            counts[result if not result.startswith('FAULT') else 'FAULT'] += 1
            if result.startswith('FAULT'):
                last = result.strip().splitlines()
                kind = re.sub(r"[0-9'\"].*", '', last[-1])[:60] + (last[-3] if len(last) > 3 else '')
                kinds[kind] += 1
                if kinds[kind] <= 2:
                    kept = folder / str(number)
                    shutil.copytree(folder / 'now', kept, dirs_exist_ok=True)
                    (kept / 'FAULT').write_text(result)
                    print(f'--- {name} {number}: {result[-1500:]}', flush=True)
        print(name, dict(counts), flush=True)
        for kind, times in kinds.items():
            print(f'   {times} x {kind}', flush=True)


if __name__ == '__main__':
    main()
