"""Base models: finding, checking, hashing, making and loading them."""
