"""Packages for the UIs: one file each, one line in the table. `verify/` reads them again as the UIs do."""

from __future__ import annotations

from brushset.protocols import Exporter
from webui_export.a1111 import card_exporter
from webui_export.comfyui import export_comfyui
from webui_export.invokeai import export_invokeai

EXPORTERS: dict[str, Exporter] = {
    "a1111": card_exporter("a1111"),
    "forge": card_exporter("forge"),
    "comfyui": export_comfyui,
    "invokeai": export_invokeai,
    "swarmui": card_exporter("swarmui"),
}
