"""How many operations does a piece of work start? Each is a kernel launch on a GPU; views are counted apart, being free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = frozenset({
    "view", "_unsafe_view", "t", "transpose", "expand", "permute", "unsqueeze", "squeeze", "detach", "slice", "select",
    "alias", "as_strided", "split", "split_with_sizes", "chunk", "unbind", "_reshape_alias", "view_as", "numpy_T",
    "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_same_size", "diagonal",
    "movedim", "unflatten", "resize_", "set_", "record_stream", "sym_size",
})  # fmt: skip
"""What starts no kernel: other looks at the same memory, and memory asked for."""

SYNCHRONISING = frozenset({"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select"})
"""What makes the host wait for the device's answer."""


class Operations(TorchDispatchMode):
    """Counts what is done inside: `with Operations() as counted: …`."""

    def __init__(self) -> None:
        super().__init__()
        self.started: Counter[str] = Counter()
        self.views: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.split("::")[1]  # noqa: SLF001 - an operator's only name
        (self.views if name in VIEWS else self.started)[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return self.started.total()

    @property
    def synchronising(self) -> int:
        return sum(count for name, count in self.started.items() if name in SYNCHRONISING)
