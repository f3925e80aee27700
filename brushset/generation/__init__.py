"""Images from a base model and many mixes of adapters in one batch: what MultiLoRAGenerator is made of.

Adapters stand side by side in the models and every row of a batch has weights of its own (stack.py), prompts are encoded
once for each mix that they are seen with (prompts.py), and a denoising loop asks the UNet for many images' views at once
(sampler.py). The base's weights are never written to.
"""
