from __future__ import annotations

import pytest

from sark_mw.instrumentation.labels import MAX_LABEL_LENGTH, BoundedLabel, clean_label, status_class


def test_names_past_the_limit_share_one_label() -> None:
    label = BoundedLabel(limit=2)
    assert [label(name) for name in ("a", "b", "c", "d", "a")] == ["a", "b", "other", "other", "a"]


def test_allowed_names_keep_their_label_when_an_attacker_came_first() -> None:
    label = BoundedLabel(allowed=["gpt-4o"], limit=1)
    assert [label(name) for name in ("x1", "x2", "gpt-4o")] == ["x1", "other", "gpt-4o"]


def test_with_allowed_names_no_other_gets_a_place_unless_asked_for() -> None:
    assert BoundedLabel(allowed=["gpt-4o"])("my-model") == "other"


def test_long_values_that_differ_past_the_cut_take_one_place() -> None:
    label = BoundedLabel(limit=2)
    names = {label("m" * MAX_LABEL_LENGTH + str(n)) for n in range(100)}
    assert names == {"m" * MAX_LABEL_LENGTH}
    assert label("second") == "second"


@pytest.mark.parametrize(
    ("value", "label"), [("a\nb", "a_b"), ("a\ud800b", "a_b"), ("模型", "模型"), ("x" * 999, "x" * MAX_LABEL_LENGTH)]
)
def test_a_label_can_always_be_written_out(value: str, label: str) -> None:
    assert clean_label(value) == label
    clean_label(value).encode()


def test_nothing_is_the_empty_label_and_takes_no_place() -> None:
    label = BoundedLabel(limit=1)
    assert [label(None), label(""), label("a")] == ["", "", "a"]


@pytest.mark.parametrize(("status", "label"), [(200, "2xx"), (429, "4xx"), (None, "none"), (0, "none"), (99999, "none")])
def test_a_status_is_one_of_six_labels(status: int | None, label: str) -> None:
    assert status_class(status) == label
