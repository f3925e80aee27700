"""What adapters are looked at on: subjects, without a word of style. Two at a time are alike in kind, so that both halves of
the list, every other one, hold people, animals, landscapes, buildings, things and actions alike. At most 16 words each:
with trigger and style words before it a prompt must fit CLIP's 77 tokens. The first four are the grid that people see.
"""

from __future__ import annotations

SUBJECTS = (
    "a portrait of a girl",
    "a landscape with mountains and a lake",
    "a cat sitting on a windowsill",
    "a street in an old town",
    "an old man reading a newspaper on a bench",
    "a woman with a red scarf and short hair",
    "a dog running along a beach",
    "a horse standing in a meadow",
    "a forest path in autumn",
    "a rocky coast with waves",
    "a castle on a hill",
    "a wooden house beside a river",
    "a bowl of fruit on a table",
    "a vase of sunflowers by a window",
    "two children flying a kite",
    "a man riding a bicycle in the rain",
    "a young man with glasses and a beard",
    "a grandmother knitting in an armchair",
    "an owl on a branch at night",
    "a fox in the snow",
    "a desert with dunes under a blue sky",
    "a waterfall in a green valley",
    "a harbour with fishing boats",
    "a tall city skyline at dusk",
    "a teapot and two cups",
    "an old camera on a stack of books",
    "a dancer leaping on a stage",
    "a football player kicking a ball",
    "a smiling boy holding a balloon",
    "a cook in a busy kitchen",
    "an elephant walking through tall grass",
    "a small bridge over a stream in a garden",
)
