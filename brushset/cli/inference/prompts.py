"""Which prompts are meant: words on the command line and lines of files, with the triggers that they lack.

A file has one prompt a line; empty lines and lines that begin with # are passed over. A line may be of A1111's
"Prompts from file or textbox" form: `--prompt "a cat" --negative_prompt "blurry" --seed 7`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from brushset.cli.inference.findings import collecting, refuse
from brushset.errors import UsageError
from brushset.files import shown

_LORA_TAG = re.compile(r"<(?:lora|lyco|hypernet):([^:>]*)(?::([^>]*))?>")
_EMPHASIS = re.compile(r"(?<!\\)\([^()]*:\s*[\d.]+\s*\)|(?<!\\)\(\([^()]*\)\)|(?<!\\)\[[^\[\]]*[:|][^\[\]]*\]")
_MAX_FILE_BYTES = 8 << 20  # a list of prompts is kilobytes; a model or picture named by mistake is more


@dataclass(frozen=True)
class Prompt:
    """What an image is to show, as the user wrote it. None where the line says nothing of it."""

    text: str
    negative: str | None = None
    seed: int | None = None


def read_prompts(texts: Sequence[str], files: Sequence[Path]) -> list[Prompt]:
    """The prompts of the command line, then those of the files, in order.

    Raises:
        UsageError: none at all, or all that is wrong with any of them.
    """
    findings: list[str] = []
    found = [Prompt(text.strip()) for text in texts]
    findings += [f"--prompts: prompt {number} is empty" for number, each in enumerate(found, 1) if not each.text]
    for file in files:
        with collecting(findings):
            found += _read_file(file)
    findings += [finding for each in found for finding in _foreign_syntax(each.text)]
    refuse(findings)
    if not found:
        raise UsageError('no prompt; fix: --prompts "a portrait of a girl", or --prompts-file FILE with one a line')
    return found


def emphasised(prompts: Sequence[Prompt]) -> list[str]:
    """What in the prompts is A1111's emphasis or editing, which is read here as plain text."""
    return list(dict.fromkeys(match.group() for each in prompts for match in _EMPHASIS.finditer(each.text)))


def missing_triggers(prompt: str, triggers: Sequence[str]) -> list[str]:
    """The triggers that do not stand in the prompt as words of their own; CLIP does not tell case."""
    return [trigger for trigger in dict.fromkeys(triggers) if trigger and not _stands_in(trigger, prompt)]


def with_triggers(prompt: str, triggers: Sequence[str]) -> str:
    """The prompt with every trigger that it lacks put in front."""
    return ", ".join([*missing_triggers(prompt, triggers), prompt])


def _stands_in(trigger: str, prompt: str) -> bool:
    words = r"\s+".join(map(re.escape, trigger.split()))
    return re.search(rf"(?<!\w){words}(?!\w)", prompt, re.IGNORECASE) is not None


def _foreign_syntax(text: str) -> list[str]:
    findings = []
    for match in _LORA_TAG.finditer(text):
        name, weight = match.group(1), (match.group(2) or "1").split(":")[0]
        findings.append(
            f"{match.group()}: is A1111's way to name a LoRA; fix: --loras {name}:{weight}, and take it out of the prompt"
        )
    return findings


def _read_file(file: Path) -> list[Prompt]:
    try:
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{shown(file)}: {file.stat().st_size / 1e6:.0f} MB is no list of prompts")
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"{shown(file)}: no such file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown(file)}: is not UTF-8 text (byte {error.start}); fix: save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"{shown(file)}: cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise UsageError(f"{shown(file)}: is no text; fix: save it as UTF-8")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    asked = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not asked:
        raise UsageError(f"{shown(file)}: holds no prompt; one a line is expected, # begins a remark")
    found: list[Prompt] = []
    findings: list[str] = []
    for number, line in asked:
        with collecting(findings):
            found.append(_read_line(line, f"{shown(file)}, line {number}"))
    refuse(findings)
    return found


def _read_line(line: str, place: str) -> Prompt:
    if not line.startswith("--"):
        return Prompt(line)
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f'{place}: {error}; expected --prompt "…" --negative_prompt "…" --seed N') from error
    options: dict[str, str] = {}
    for flag, value in zip(words[::2], [*words[1::2], *([""] if len(words) % 2 else [])], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        if name not in ("prompt", "negative_prompt", "seed"):
            raise UsageError(
                f"{place}: {flag} is not read from a file; --prompt, --negative_prompt and --seed are, "
                "the rest stands on the command line"
            )
        options[name] = value
    if not options.get("prompt", "").strip():
        raise UsageError(f'{place}: no --prompt "…"')
    seed = options.get("seed")
    if seed is not None and not seed.isdecimal():
        raise UsageError(f"{place}: --seed {seed}: a whole number is expected")
    return Prompt(options["prompt"].strip(), options.get("negative_prompt"), None if seed is None else int(seed))
