"""The isolated tier: plugins that anyone may have written, judged in processes that the kernel keeps empty-handed."""

from sark_mw.policy.isolated.hardening import probe
from sark_mw.policy.isolated.options import Hardening, IsolationOptions
from sark_mw.policy.isolated.proxy import IsolatedPlugin, isolate

__all__ = ["Hardening", "IsolatedPlugin", "IsolationOptions", "isolate", "probe"]
