"""Packages for the UIs: one file each, one line in the table."""

from __future__ import annotations

from brushset.protocols import Exporter
from webui_export.a1111 import export_a1111
from webui_export.comfyui import export_comfyui

EXPORTERS: dict[str, Exporter] = {
    "a1111": export_a1111,
    "comfyui": export_comfyui,
}
