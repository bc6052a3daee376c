"""Packages of plugins: what they say of themselves (`plugin.toml`), and which versions may be loaded (`sark-plugins.lock`)."""

from __future__ import annotations

from sark_mw.policy.packages.admission import Packages, UnmetRequirementsError
from sark_mw.policy.packages.lock import LOCK_NAME, Lock, Pin, PinState, pin_of
from sark_mw.policy.packages.manifest import MANIFEST_NAME, Contents, Manifest, ManifestFile, manifest_beside, package_file

__all__ = [
    "LOCK_NAME",
    "MANIFEST_NAME",
    "Contents",
    "Lock",
    "Manifest",
    "ManifestFile",
    "Packages",
    "Pin",
    "PinState",
    "UnmetRequirementsError",
    "manifest_beside",
    "package_file",
    "pin_of",
]
