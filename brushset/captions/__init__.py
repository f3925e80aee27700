"""Caption texts: the trigger in front, style words out, what sd-scripts makes of them, what is wrong with them."""
