"""Paths of the known providers that cost money and that no wire reads: images, audio, batches, other models' verbs."""

from __future__ import annotations

import re

from sark_mw.wire.body import clean_path

# After a version, or after OpenAI's prefixes at Azure: bare, these are too common words to be taken for a provider's.
_OPENAI = re.compile(
    r".*?/(?:v\d{1,3}[a-z]{0,9}\d{0,3}|openai|(?:deployments|engines)/[^/]+)/(?:"
    r"images/(?:generations|edits|variations)|audio/(?:speech|transcriptions|translations|voices)|batches|edits|rerank|"
    r"responses/compact|videos|videos/(?:edits|extensions|[^/]+/remix)|fine_tuning/jobs|fine_tuning/alpha/graders/run|fine-tunes|"
    r"realtime/(?:sessions|client_secrets|calls|transcription_sessions)|threads/runs|threads/[^/]+/runs|evals/[^/]+/runs|"
    r"containers|chatkit/sessions|vector_stores)",
    re.DOTALL,
)
_ANTHROPIC = re.compile(r".*?/(?:v\d{1,3}|anthropic)/(?:messages/batches|complete)", re.DOTALL)
_GEMINI = re.compile(
    r"(?:.*?/)?(?:(?:models|tunedmodels|endpoints)/[^/]+:[a-z]*(?:predict|generate|embed)[a-z]*|"
    r"v\d{1,3}[a-z]{0,9}\d{0,3}/(?:interactions|cachedcontents|tunedmodels))",
    re.DOTALL,
)
_DIALECTS = {"openai": _OPENAI, "anthropic": _ANTHROPIC, "gemini": _GEMINI}


def spends(method: str, path: str) -> str | None:
    """Name the wire of a request that a known provider charges for and that no wire reads; None for anything else.

    Reading (GET) is free everywhere. Ask only for what no wire has recognised.
    """
    if method != "POST":
        return None
    clean = clean_path(path)
    return next((name for name, pattern in _DIALECTS.items() if pattern.fullmatch(clean)), None)
