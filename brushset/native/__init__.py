"""The embedded trainer: reads the pair of Kohya TOMLs, trains on diffusers' UNet, writes a file in Kohya's format.

settings (the TOML pair, typed) → dataset (images, captions, batches) → latents, text (what the UNet is fed) →
lora (the layers that are trained) → objective (noise and loss) → optim (rates) → loop → checkpoint, metadata.
"""
