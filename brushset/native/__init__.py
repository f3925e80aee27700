"""The embedded trainer: reads the pair of Kohya TOMLs, trains on diffusers' UNet, writes a file in Kohya's format.

settings (the TOML pair, typed) → dataset (images, captions, batches) → latents, text (what the UNet is fed) →
lora, product, flat (the layers that are trained, their arithmetic, their memory) → objective (noise and loss) → optim
(rates) → step, graph (one pass of one or several styles) → session (one style in it), memory (what it takes) → schedule
(who shares the next pass), loop → checkpoint, metadata, state.
training is one job around all of it: its files, its log, and what the next attempt goes on from.
"""
