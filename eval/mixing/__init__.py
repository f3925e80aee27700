"""How styles are best mixed: which weights and method are tried, measured and advised, and what was predicted of it."""
