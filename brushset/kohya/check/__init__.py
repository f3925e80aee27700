"""Is a Kohya TOML taken by sd-scripts, and taken as meant? Names, types, ranges, effects and combinations; any file of a user too."""
