"""How a page is gone through: what must make its test fail does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.howto.page import go_through, left_of

FENCE = "```"


def page(*blocks: str) -> str:
    return "\n\n".join(f"{FENCE}{block}\n{FENCE}" for block in blocks) + "\n"


def test_ids_and_times_may_differ_and_an_ellipsis_stands_for_anything(tmp_path: Path, free_port: Callable[[], int]) -> None:
    says = "text output\nreq_0123456789abcdef at 2026-11-22T23:00:00Z: 3 of … left"
    go_through(page("bash\necho 'req_fedcba9876543210 at 2031-01-01T00:00:00Z: 3 of 17 left'", says), tmp_path, free_port)


@pytest.mark.parametrize("says", ["402", "200\n200", ""])
def test_another_output_than_the_page_has_fails(says: str, tmp_path: Path, free_port: Callable[[], int]) -> None:
    with pytest.raises(AssertionError, match="line 1: the page says"):
        go_through(page("bash\necho 200", f"text output\n{says}"), tmp_path, free_port)


def test_a_step_that_fails_is_named_and_what_comes_after_it_is_not_done(tmp_path: Path, free_port: Callable[[], int]) -> None:
    with pytest.raises(AssertionError, match=r"line 5: exit 7"):
        go_through(page("bash\necho first", "bash\n(exit 7)", "bash\ntouch third"), tmp_path, free_port)
    assert not (tmp_path / "third").exists()


def test_files_are_written_and_a_shell_lives_from_block_to_block(tmp_path: Path, free_port: Callable[[], int]) -> None:
    written = page(
        'toml a/b.toml\nkey = "it\'s $HOME"',
        'bash\nname=otter\nsay() { echo "$1 $name"; }',
        "bash\nsay the; cat a/b.toml",
        'text output\nthe otter\nkey = "it\'s $HOME"',
    )
    go_through(written, tmp_path, free_port)


def test_ports_are_other_ones_each_time_and_the_same_throughout(tmp_path: Path, free_port: Callable[[], int]) -> None:
    go_through(page("bash\necho 8080 > port\n[ $(cat port) = 8080 ] && echo 8080", "text output\n8080"), tmp_path, free_port)
    assert (tmp_path / "port").read_text().strip() != "8080"


def test_what_a_page_leaves_in_the_background_is_ended_even_if_it_does_not_want_to(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.howto.page.PATIENCE_S", 0.3)
    stubborn = "setsid bash -c 'trap \"\" TERM; touch up; sleep 601' > log 2>&1 &\nuntil [ -f up ]; do :; done"
    go_through(page(f"bash\nsleep 600 &\n{stubborn}"), tmp_path, free_port)
    assert left_of(tmp_path) == []
