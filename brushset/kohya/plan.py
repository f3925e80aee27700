"""How large are a training's batches, and how many steps does that make?

Where a batch does not fit into the GPU's memory it is divided and as much more is accumulated: an optimizer step sees as
many images as before and the learning rate stays. The number of steps may change a little, since each bucket's last batch
is short: it is counted anew, by sd-scripts' own rules.
"""

from __future__ import annotations

import math

from brushset.buckets import count_batches, count_steps, share_batches
from brushset.protocols import TrainJob
from brushset.records import Record


class Plan(Record):
    """One way to take the steps of a training. `batch_size` is one process's."""

    batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    batches_per_epoch: int
    steps: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.batches_per_epoch / self.gradient_accumulation_steps)

    @property
    def ends_inside_an_epoch(self) -> bool:
        return self.steps < self.epochs * self.steps_per_epoch

    def step_after(self, epoch: int) -> int:
        """The optimizer step that ends an epoch, counted from 1; the last epoch may be cut short."""
        return min(epoch * self.steps_per_epoch, self.steps)

    def counts_like(self, other: Plan) -> bool:
        """Whether both take the same steps in the same epochs, so that one can go on where the other stopped."""
        return (self.steps_per_epoch, self.steps, self.epochs) == (other.steps_per_epoch, other.steps, other.epochs)

    def batches_like(self, other: Plan) -> bool:
        """Whether both need as much memory."""
        return (self.batch_size, self.gradient_checkpointing) == (other.batch_size, other.gradient_checkpointing)

    def __str__(self) -> str:
        checkpointing = ", gradient_checkpointing" if self.gradient_checkpointing else ""
        return f"batch_size {self.batch_size} × gradient_accumulation_steps {self.gradient_accumulation_steps}{checkpointing}"


def plan_asked(job: TrainJob) -> Plan:
    """What the style says."""
    train = job.spec.train
    return Plan(
        batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        gradient_checkpointing=train.gradient_checkpointing,
        batches_per_epoch=job.batches_per_epoch,
        steps=job.steps,
        epochs=math.ceil(job.steps / math.ceil(job.batches_per_epoch / train.gradient_accumulation_steps)),
    )


def plan_with(job: TrainJob, batch_size: int, *, checkpointing: bool) -> Plan:
    """The same effective batch in smaller parts. `batch_size` divides the style's own."""
    asked = plan_asked(job)
    if batch_size == asked.batch_size:
        return asked.model_copy(update={"gradient_checkpointing": checkpointing})
    train = job.spec.train
    accumulation = train.gradient_accumulation_steps * (train.batch_size // batch_size)
    batches = count_batches(job.buckets.values(), repeats=job.repeats, batch_size=batch_size)
    shared = share_batches(batches, train.processes)
    smaller = train.model_copy(update={"batch_size": batch_size, "gradient_accumulation_steps": accumulation})
    steps, epochs = count_steps(smaller, shared)
    return Plan(
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=checkpointing,
        batches_per_epoch=shared,
        steps=steps,
        epochs=epochs,
    )


def plan_smaller(job: TrainJob, plan: Plan) -> Plan | None:
    """What to try when `plan` did not fit: half the batch, and with a batch of one gradient checkpointing; None when
    nothing is left to try.
    """
    if plan.batch_size > 1:
        divisors = [size for size in range(1, plan.batch_size // 2 + 1) if plan.batch_size % size == 0]
        return plan_with(job, max(divisors), checkpointing=plan.gradient_checkpointing)
    if not plan.gradient_checkpointing:
        return plan_with(job, plan.batch_size, checkpointing=True)
    return None
