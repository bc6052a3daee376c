"""Examine a set-up without changing it: `examine(settings, question)`; the command line prints what it finds."""

from __future__ import annotations

from sark_mw.doctor.checks import Check, Status
from sark_mw.doctor.examine import Examination, examine
from sark_mw.doctor.forecast import Forecast, ForecastLimit, Question

__all__ = ["Check", "Examination", "Forecast", "ForecastLimit", "Question", "Status", "examine"]
