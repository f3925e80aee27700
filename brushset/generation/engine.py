"""The models of a base with their adapters, and what draws images with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from brushset.bases.load import Components
from brushset.generation.prompts import PromptEncoder
from brushset.generation.sampler import Drawn, Models, Sampler
from brushset.generation.settings import Picture, Sampling
from brushset.generation.stack import LoraStack, Pairs
from brushset.lora.adapter import AdapterFile
from brushset.protocols import Emit


class Engine:
    """Base weights loaded once, adapters beside them.

    `one_by_one` encodes and decodes each image by itself, so that no bit of it depends on the others. `compiled`
    compiles the UNet's repeated blocks, with all adapters in them at all times: row weights are inputs there, so that a
    change of mix compiles nothing anew, and one of adapters does.
    """

    def __init__(self, components: Components, *, one_by_one: bool, compiled: bool, emit: Emit) -> None:
        self.components, self._one_by_one, self._compiled = components, one_by_one, compiled
        self._unet_stack = LoraStack(components.unet, "unet", steady=compiled)
        self._text_stack = LoraStack(components.text_encoder, "text_encoder")
        self._prompts = PromptEncoder(
            components.text_encoder, components.tokenizer, self._text_stack, one_by_one=one_by_one, emit=emit
        )
        self._sampler = Sampler(Models(components.unet, components.vae, self._unet_stack), self._prompts, emit)
        if compiled:
            components.unet.compile_repeated_blocks(fullgraph=True)

    @property
    def adapters(self) -> tuple[Mapping[str, Pairs], Mapping[str, Pairs]]:
        """What is loaded, by name: the UNet's part and the text encoder's."""
        return self._unet_stack.adapters, self._text_stack.adapters

    def load(self, name: str, adapter: AdapterFile, base: str) -> None:
        """Adds an adapter, or replaces the one of that name; nothing is changed where it does not fit.

        Raises:
            UsageError, VerificationFailed: it does not fit this base.
        """
        stacks = (self._unet_stack, self._text_stack)
        fitted = [stack.fit(adapter.factors, adapter.path, base) for stack in stacks]
        for stack, pairs in zip(stacks, fitted, strict=True):
            stack.add(name, pairs)
        self._renew()

    def unload(self, name: str) -> None:
        """Forgets an adapter."""
        self._unet_stack.remove(name)
        self._text_stack.remove(name)
        self._renew()

    def draw(self, pictures: Sequence[Picture], sampling: Sampling) -> Drawn:
        """The images, decoded."""
        latents = self._sampler.sample(pictures, sampling)
        return self._sampler.decode(latents, at_a_time=1 if self._one_by_one else len(pictures))

    def _renew(self) -> None:
        self._prompts.forget()
        if self._compiled:
            torch.compiler.reset()  # compiled code does not look for hooks that came or went
