"""`inference`: images from prompts with any mix of adapters, and everything that says how to make them again."""
