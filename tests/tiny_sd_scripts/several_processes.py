"""The narrow train_network.py in several CPU processes that talk through gloo, as several GPUs do through NCCL.

For tests alone. Accelerate wraps a model for exchange of gradients only where it has any, on GPUs; on CPUs it wraps
the frozen UNet too, which torch refuses. Here it does on CPUs what it does on GPUs.
"""

import os
import runpy
from pathlib import Path

os.environ["ACCELERATE_USE_CPU"] = "true"

from accelerate import Accelerator

prepare_model = Accelerator.prepare_model


def prepare_as_on_gpus(self, model, device_placement=None, evaluation_mode=False):
    frozen = not any(weight.requires_grad for weight in model.parameters())
    return prepare_model(self, model, device_placement, evaluation_mode or frozen)


Accelerator.prepare_model = prepare_as_on_gpus

runpy.run_path(str(Path(__file__).with_name("train_network.py")), run_name="__main__")
