"""The table and the bars of benchmarks.speed: failures are named, ratios are to the first row of a group."""

from xml.etree import ElementTree

from benchmarks import chart

RESULTS = [
    {'title': 'encoder', 'side': 'samjax', 'seconds': 2.0, 'min': 1.5, 'max': 3.0, 'flops': 4e12, 'ceiling': 8e12}
    | {'gib': 1.25},
    {'title': 'encoder', 'side': 'meta', 'seconds': 5.0, 'min': 5.0, 'max': 5.0, 'flops': 4e12}
    | {'ceiling': 4e12, 'gib': 2.0},
    {'title': 'encoder', 'side': 'huggingface', 'failed': 'transformers is not installed'},
    {'title': 'options', 'side': 'remat=none', 'failed': 'out of memory'},
    {'title': 'options', 'side': 'remat=full', 'seconds': 0.5, 'min': 0.5, 'max': 0.5},
    {'title': 'compilation', 'side': 'cold', 'seconds': 30.0},
    {'title': 'compilation', 'side': 'cached', 'seconds': 7.5},
]


def test_table():
    assert chart.markdown(RESULTS).splitlines()[2:] == [
        '| encoder | samjax | 2 | 1.5 to 3 | 2 | 25% of 8 | 1.25 |  |',
        '| encoder | meta | 5 | 5 to 5 | 0.8 | 20% of 4 | 2.00 | 2.50 |',
        '| encoder | huggingface | transformers is not installed | | | | | |',
        '| options | remat=none | out of memory | | | | | |',
        '| options | remat=full | 0.5 | 0.5 to 0.5 |  |  |  |  |',
        '| compilation | cold | 30 |  |  |  |  |  |',
        '| compilation | cached | 7.5 |  |  |  |  | 0.25 |',
    ]


def test_bars_are_as_long_as_the_seconds():
    root = ElementTree.fromstring(chart.svg(RESULTS))
    words = [element.text for element in root.findall('{*}text')]
    bars = [float(element.attrib['width']) for element in root.findall('{*}rect')][1:]  # the first is the background
    assert bars == [224.0, 560.0, 560.0, 560.0, 140.0]
    assert {'2 s', '5 s, 2.50 x samjax', 'transformers is not installed', '7.5 s, 0.25 x cold'} <= set(words)
