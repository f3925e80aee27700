"""The real train_network.py made narrow as for `random:tiny`, and with the groups of the small world's norms.

For tests alone.
"""

import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, os.environ["SD_SCRIPTS_DIR"])

from library import original_unet

original_unet.NORM_GROUPS = original_unet.TRANSFORMER_NORM_NUM_GROUPS = 4  # small_world.prior

wrapper = Path(__file__).parent.parent / "tiny_sd_scripts" / "train_network.py"
runpy.run_path(str(wrapper), run_name="__main__")
