"""A small SAM on drawn scenes, trained from nothing on a laptop's CPU.

    python train.py --config configs/quickstart.py --workdir runs/quickstart
"""

from configs import default


def get_config():
    c = default.get_config()
    return c
