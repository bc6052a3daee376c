from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sark_mw.pricing.tokens import TextCounter, encoding_of, estimate_tokens, reads_published, tokenizer
from tests.pricing.texts import KINDS, LANGUAGES

ALL = {**LANGUAGES, **KINDS}
VOCABULARIES = ("o200k_base", "cl100k_base", "voyage3_base")


def real(encoding: str, text: str) -> int:
    count = tokenizer(encoding)
    if count is None:
        pytest.skip("the tokenizer extra is not installed")
    return count(text)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("encoding", VOCABULARIES)
def test_the_estimated_ceiling_is_never_below_the_real_count(name: str, encoding: str) -> None:
    assert estimate_tokens(ALL[name]).ceiling >= real(encoding, ALL[name])


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_expected_count_is_near_the_real_one(name: str) -> None:
    text = LANGUAGES[name]
    ratio = estimate_tokens(text).expected / real("o200k_base", text)
    assert 0.6 <= ratio <= 1.9 or name == "amharic"


_mixed = st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(names=_mixed, cut=st.integers(min_value=120, max_value=2000))
def test_mixtures_of_scripts_stay_below_the_ceiling_too(names: list[str], cut: int) -> None:
    text = "\n".join(ALL[name][:cut] for name in names)
    for encoding in VOCABULARIES:
        assert estimate_tokens(text).ceiling >= real(encoding, text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=300))
def test_the_bytes_bound_any_text_and_no_text_breaks_the_count(text: str) -> None:
    counted = estimate_tokens(text)
    size = len(text.encode("utf-8", "replace"))
    assert counted.expected <= counted.ceiling <= max(size * 3, 0)
    for encoding in VOCABULARIES:
        assert real(encoding, text) <= len(text.encode())


def test_a_lone_surrogate_is_counted_like_any_other_character() -> None:
    counter = TextCounter(tokenizer("o200k_base"), 1000)
    counter.add("a\ud800b")
    assert 3 <= counter.ceiling <= 7
    assert estimate_tokens("\ud800").ceiling >= 1


def test_text_within_the_budget_is_counted_exactly_and_the_rest_bounded() -> None:
    text = LANGUAGES["english"] * 100
    exact = TextCounter(tokenizer("o200k_base"), len(text))
    exact.add(text)
    partly = TextCounter(tokenizer("o200k_base"), len(text) // 4)
    partly.add(text)
    truth = real("o200k_base", text)
    assert exact.ceiling == exact.expected == truth
    assert partly.ceiling > truth
    assert abs(partly.expected - truth) < truth * 0.15


@pytest.mark.parametrize("name", ["english", "russian", "chinese", "base64", "json", "python"])
def test_megabytes_are_bounded_from_a_sample(name: str) -> None:
    text = ALL[name] * (1_200_000 // len(ALL[name]))
    piece = ALL[name] * (60_000 // len(ALL[name]))
    per_character = max(real(encoding, piece) for encoding in VOCABULARIES) / len(piece)
    counted = estimate_tokens(text)
    assert counted.ceiling >= per_character * len(text) * 0.99
    assert counted.expected <= counted.ceiling


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("text-embedding-3-large", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
        ("openai/gpt-4.1-mini", "o200k_base"),
        ("gpt-4.5-preview", "o200k_base"),
        ("o1", "o200k_base"),
        ("gpt-6-sol", "o200k_base"),
    ],
)
def test_each_model_is_read_with_its_vocabulary(model: str, encoding: str) -> None:
    assert encoding_of(model) == encoding


def test_a_vocabulary_that_is_not_published_gets_a_margin() -> None:
    sure, unsure = (TextCounter(tokenizer("o200k_base"), 10_000, ceiling_factor=factor) for factor in (1.0, 1.15))
    for counter in (sure, unsure):
        counter.add(LANGUAGES["german"])
    assert unsure.ceiling > sure.ceiling
    assert unsure.expected == sure.expected
    assert reads_published("openai/gpt-4o")
    assert not reads_published("gpt-6-sol")
