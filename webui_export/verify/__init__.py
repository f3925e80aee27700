"""A package read again as each UI reads it: A1111, Forge and SwarmUI, ComfyUI, InvokeAI, the hub.

Independent of what writes packages, and, for names and shapes, of what trains: three tables of our own, from the UIs'
behaviour. `lora.py` is one file, `beside.py` what lies next to it, `comfy_package.py` the workflows, `package.py` all.
"""

from __future__ import annotations

from webui_export.verify.package import Verification, verify_package, write_sums

__all__ = ["Verification", "verify_package", "write_sums"]
