"""How several adapters act together while an image is being made; brushset.lora.merge makes one file of them instead."""
