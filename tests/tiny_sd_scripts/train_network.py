"""The real train_network.py with SD 1.5's three size constants made small, so that it trains `random:tiny` in seconds.

For tests alone. sd-scripts builds its UNet from module constants; nothing else of it is touched.
"""

import os
import runpy
import sys
from pathlib import Path

folder = os.environ["SD_SCRIPTS_DIR"]
sys.path.insert(0, folder)

from library import original_unet  # noqa: E402 - of the folder that was just put on the path

original_unet.BLOCK_OUT_CHANNELS = (32, 64, 64, 64)  # brushset.bases.configs.TINY
original_unet.TIMESTEP_INPUT_DIM = 32
original_unet.TIME_EMBED_DIM = 128

runpy.run_path(str(Path(folder, "train_network.py")), run_name="__main__")
