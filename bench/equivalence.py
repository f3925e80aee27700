"""Are packed gradients those of each style alone, on this device, in its number formats?

    python bench/equivalence.py --out lines.jsonl         # on a GPU SD 1.5 at 512 px in fp32 and bf16; else a narrow model

Three styles with a batch each; the relative difference of all LoRA gradients of a style, packed against alone, the
largest of the three. Rounding is all that may differ: some 1e-5 in fp32 (TF32 off), some 1e-2 in bf16, as between any two
batch sizes. In float64 on a CPU it is 1e-13 (tests/test_native_packed.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from bench.lines import tell
from bench.native_step import Work, open_sessions
from brushset.bases.resolve import resolve_base
from brushset.log import silent
from brushset.native.dataset import Batch

STYLES = 3


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compares, and prints a line a number format."""
    asked = _parse(argv)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    base = resolve_base(asked.base, None, silent)
    found = []
    for dtype in (torch.float32, torch.bfloat16) if asked.device == "cuda" else (torch.float32,):
        work = Work(base, asked.px, asked.batch, 32, asked.device, styles=STYLES, trains_text=asked.text)
        row = {"stage": "packed against alone", "dtype": str(dtype).removeprefix("torch."), **compare(work, dtype)}
        found.append(row)
        tell(row, asked.out)
    return found


def compare(work: Work, dtype: torch.dtype) -> dict[str, float]:
    """The largest relative differences of gradients and losses of the styles."""
    gradients, losses = _gradients(work, range(work.styles), dtype)
    worst, worst_loss = 0.0, 0.0
    for style in range(work.styles):
        (alone,), (loss,) = _gradients(work, [style], dtype)
        worst = max(worst, ((gradients[style] - alone).norm() / alone.norm()).item())
        worst_loss = max(worst_loss, abs(losses[style] - loss) / loss)
    return {"gradients": worst, "losses": worst_loss}


def _gradients(work: Work, styles: Any, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[float]]:
    """Of one pass over one batch a style: each one's gradients and loss."""
    sessions = open_sessions(work, styles, dtype)
    batch = Batch((work.px, work.px), tuple(range(work.batch)))
    losses = sessions[0].pack.add_gradients({session.row: session.draw(batch, 0) for session in sessions})
    found = sessions[0].pack.flat.gradients
    return [found[session.row].float().cpu() for session in sessions], losses.tolist()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument("--base", default="random:sd15" if gpu else "random:tiny")
    parser.add_argument("--px", type=int, default=512 if gpu else 64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--text", action="store_true", help="train the text encoder, too")
    parser.add_argument("--out", type=Path, help="file that each line is added to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
