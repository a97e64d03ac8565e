"""samjax.distributed.hardware: figures of the data sheets."""

import pytest

from samjax.distributed import hardware


def test_peaks():
    assert hardware.peak('TPU v5 lite') == 197e12
    assert hardware.peak('TPU v5p') == hardware.peak('TPU v5') == 459e12
    assert hardware.peak('TPU v4') == 275e12
    assert hardware.peak('NVIDIA H200') == hardware.peak('NVIDIA H100 80GB HBM3') == 989e12
    assert {hardware.peak(kind) for kind in hardware.PEAK if 'A100' in kind} == {312e12}
    assert hardware.peak('cpu') is None


def test_chips():
    per_byte = {kind: (chip.peak / chip.bandwidth, chip.peak / chip.network) for kind, chip in hardware.CHIPS.items()}
    assert per_byte['TPU v5 lite'] == pytest.approx((240.5, 985), rel=1e-3)
    assert per_byte['TPU v4'] == pytest.approx((229.2, 1024), rel=1e-3)
    assert per_byte['TPU v5p'] == pytest.approx((166, 765), rel=1e-3)
    assert per_byte['TPU v6 lite'] == pytest.approx((560.4, 2295), rel=1e-3)
    assert hardware.CHIPS['TPU v5 lite'].usable / 2**30 == 15.75
