"""LoRA Switch: adapters take turns. Zhong et al., "Multi-LoRA Composition for Image Generation", arXiv 2402.16843.

At step t = 0, 1, … of N adapters
    i = ⌊t/τ⌋ mod N,  W + wᵢΔWᵢ                                         τ = 5
and the prompt is encoded by the adapter whose turn it is (theirs encodes it once, by the first). One UNet pass a step;
each adapter acts in 1/N of the steps, so its effect over the image is about wᵢ/N: full weights are usual.

Every change of turn is a jump of the prediction, so a multistep solver begins anew there (View.restart). Within a turn
it is of second order as ever; with τ = 1 there is nothing to look back to, and DPM++ 2M is DDIM. Looking back over
jumps would err once one way and once the other, and end better or worse by where the last turn ends: on the Gaussians
of tests/test_compose.py by 0.002 in 25 steps and 0.034 in 20, where this is 0.007 in both and DDIM 0.03 to 0.04.
As turns get short against the whole it goes to Composite with the same weights.
"""

from __future__ import annotations

from brushset.errors import UsageError
from brushset.lora.compose.method import Options, names_of
from brushset.lora.compose.view import Course, Mix, View


def switch(mix: Mix, options: Options) -> Course:
    """One adapter after the other, `options.every` steps each. The order is the mix's.

    Raises:
        UsageError: turns of no step; from the course, fewer steps than it takes for each to have a turn.
    """
    if options.every < 1:
        raise UsageError(f"switch: every = {options.every}: an adapter's turn has at least 1 step")

    def course(step: int, steps: int) -> tuple[View, ...]:
        _require_a_turn_each(mix, options.every, steps)
        turn = step // options.every
        restart = len(mix) > 1 and turn > 0 and step % options.every == 0
        return (View((mix[turn % len(mix)],), restart=restart),)

    return course


def _require_a_turn_each(mix: Mix, every: int, steps: int) -> None:
    reached = -(-steps // every)
    if reached < len(mix):
        raise UsageError(
            f"switch: {steps} steps in turns of {every} never come to {names_of(mix[reached:])}; "
            f"fix: turns of {max(1, steps // len(mix))}, or {every * (len(mix) - 1) + 1} steps or more"
        )
