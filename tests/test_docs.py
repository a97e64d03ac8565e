"""What README.md, CONTRIBUTING.md and docs/ name exists: files, modules, commands, flags, options, tests; and old names
are gone from documentation and code."""

import importlib
import importlib.util
import re
import tokenize
from pathlib import Path

import pytest

import samjax
from samjax.cli.main import COMMANDS, main
from samjax.config import RENAMED, get_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
PYTHON_FILES = sorted(file for folder in ('samjax', 'configs', 'benchmarks') for file in (ROOT / folder).rglob('*.py'))
# Identifiers before version 0.2.
OLD_IDENTIFIERS = """
    Answer Dialect Findings Found KEPT Labelled Ledger Loaded Output Photo Photos Place Program Rules Said Settings
    Simulation Subject TOGETHER Unusable asker attend_in_parts attend_whole box_of dialect enlarge findings highest
    in_turns judge labelled mask_picture masks_of_everything mend object_sums open_predictor open_source paint photo
    photos said shared_out subject survey told turned
"""
each_document = pytest.mark.parametrize('document', DOCUMENTS, ids=lambda document: document.name)


def matches(pattern: str, document: Path) -> list:
    return sorted(set(re.findall(pattern, document.read_text())))


def blocks(language: str, document: Path) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', document.read_text(), re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    titles = re.findall(r'^#+ (.+)$', document.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in titles}


def help_text(command: str, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), '--help'])
    assert stop.value.code == 0, command
    return capsys.readouterr().out


@each_document
def test_links_lead_somewhere(document):
    for target, anchor in matches(r'\]\((?!http)([^)#\s]*)#?([^)\s]*)\)', document):
        file = document.parent / target if target else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f'{target}#{anchor}'


@each_document
def test_modules_and_names_can_be_imported(document):
    for module in matches(r'python -m ((?:samjax|benchmarks)[\w.]*)', document):
        assert importlib.util.find_spec(module), module
    for module, names in matches(r'from (samjax[\w.]*) import ([\w, ]+)', document):
        for name in names.split(','):
            path = f'{module}.{name.strip()}'
            assert hasattr(importlib.import_module(module), name.strip()) or importlib.util.find_spec(path), path
    for block in blocks('python', document):
        compile(block, document.name, 'exec')
        for name in re.findall(r'\bsamjax\.([A-Za-z]\w*)\(', block):
            assert hasattr(samjax, name), name


@each_document
def test_options_of_the_config_exist(document):
    sections = '|'.join(get_config().keys())
    options = matches(rf'--config\.((?:{sections})(?:\.\w+)*)', document) + matches(
        rf'`((?:{sections})\.(?!py`)[a-z]\w*)[`=]', document
    )
    for option in options:
        value = get_config()
        for key in option.split('.'):
            value = value[key]


@each_document
def test_tests_exist(document):
    tests = list((ROOT / 'tests').rglob('test_*.py'))
    functions = '\n'.join(path.read_text() for path in tests)
    for path in matches(r'`(tests/[\w/]+\.py)`', document):
        assert (ROOT / path).exists(), path
    for name in matches(r'`(test_\w+)(?:\.py|\.\.\.)?`', document):
        assert f'def {name}' in functions or any(path.stem == name for path in tests), name


def test_commands_have_the_flags_that_documents_use(capsys):
    text = '\n'.join(block for document in DOCUMENTS for block in blocks('sh', document)).replace('\\\n', ' ')
    flags = {command: set() for command in COMMANDS}
    for command, arguments in re.findall(r'(?m)^(?:nohup |python -m )?samjax (data \w+|[a-z]+)([^#\n]*)', text):
        flags.setdefault(command, set()).update(re.findall(r'(?<!\S)--[\w-]+(?![\w.-])', arguments))
    assert {'data prepare', 'data sa1b', 'data check'} <= set(flags)
    for command, names in flags.items():
        known = re.findall(r'--[\w-]+', help_text(command, capsys))
        assert names <= set(known), command


def test_file_map_names_every_package():
    readme = (ROOT / 'README.md').read_text()
    packages = {file.parent.relative_to(ROOT).as_posix() for file in (ROOT / 'samjax').rglob('__init__.py')}
    assert packages - {'samjax'} <= set(re.findall(r'\]\((samjax/[\w/]+)\)', readme))


def test_old_names_of_options_are_gone():
    old = re.compile(r'\b(' + '|'.join(map(re.escape, RENAMED)) + r')\b')
    files = [*PYTHON_FILES, *DOCUMENTS, ROOT / 'train.py', ROOT / 'eval.py', *(ROOT / 'launch').iterdir()]
    files.remove(ROOT / 'samjax' / 'config.py')
    names = {f'{file.relative_to(ROOT)}: {name}' for file in files for name in old.findall(file.read_text())}
    assert not names


def test_old_identifiers_are_gone():
    names = set()
    for file in PYTHON_FILES:
        with tokenize.open(file) as lines:
            tokens = tokenize.generate_tokens(lines.readline)
            identifiers = {token.string for token in tokens if token.type == tokenize.NAME}
        names |= {f'{file.relative_to(ROOT)}: {name}' for name in identifiers & set(OLD_IDENTIFIERS.split())}
    assert not names
