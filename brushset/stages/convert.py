"""convert: the chosen file once more in the form that diffusers loads, proven equal module by module and in what the
models say with either form; the figures stand in adapter/convert.json.

The Kohya file stays what is shipped; this form is for Python users and for our own evaluation.
"""

from __future__ import annotations

from brushset.chosen import chosen_adapter
from brushset.pipeline import Stage, StageContext
from brushset.records import Adapter, Trained


def convert_trained(context: StageContext) -> Adapter:
    """Writes the PEFT form of the chosen checkpoint into the work folder.

    Raises:
        VerificationFailed: leftover keys, or a form that is not equal.
    """
    from brushset.lora.adapter import WEIGHT_NAME, read_adapter
    from brushset.lora.convert import convert_adapter

    source = read_adapter(chosen_adapter(context.run, context.get(Trained)).file)
    conversion = convert_adapter(source, "diffusers", context.workdir / WEIGHT_NAME)
    assert conversion.deltas is not None
    context.emit("note", text=conversion.told())
    return Adapter(
        path=STAGE.output,
        modules=conversion.deltas.modules,
        max_relative_error=conversion.deltas.max_relative_error,
    )


STAGE: Stage[Adapter] = Stage(
    name="convert", record=Adapter, run=convert_trained, needs=("choose", "train"), output="adapter", version=2
)
