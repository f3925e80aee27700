"""convert: the trained file once more in the form that diffusers loads, proven equal module by module.

The Kohya file stays what is shipped; this form is for Python users and for our own evaluation.
"""

from __future__ import annotations

from brushset.pipeline import Stage, StageContext
from brushset.records import Adapter, Trained


def convert_trained(context: StageContext) -> Adapter:
    """Writes the PEFT form of the trained weights into the work folder.

    Raises:
        VerificationFailed: leftover keys, or a ΔW that differs.
    """
    from brushset.lora.convert import convert_to_diffusers

    trained = context.get(Trained)
    conversion = convert_to_diffusers(context.run.root / trained.weights, context.workdir)
    context.emit(
        "note", text=f"{conversion.modules} modules equal to {conversion.max_relative_error:.1g} in diffusers' form"
    )
    return Adapter(path=STAGE.output, modules=conversion.modules, max_relative_error=conversion.max_relative_error)


STAGE: Stage[Adapter] = Stage(name="convert", record=Adapter, run=convert_trained, needs=("train",), output="adapter")
