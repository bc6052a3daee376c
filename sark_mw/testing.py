"""What a user's own tests need: the executable specification of the store, a clock to move, a ledger, a provider."""

from __future__ import annotations

from sark_mw._fake_provider import FakeCall, FakeProvider
from sark_mw._memory_store import ManualClock, MemoryStore
from sark_mw._recording_ledger import RecordingLedger

__all__ = ["FakeCall", "FakeProvider", "ManualClock", "MemoryStore", "RecordingLedger"]
