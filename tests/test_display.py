"""Tables for a terminal."""

from __future__ import annotations

from bertjax.display import text_table


def test_a_table_is_as_wide_as_its_cells_and_keeps_their_blanks() -> None:
    assert text_table(["name", "n", ""], [["a  b", "1", ""], ["c", "20", ""]]) == (
        "name   n\n----  --\na  b   1\nc     20"
    )


def test_a_narrow_table_breaks_headings_between_words_as_far_as_needed_and_then_cells() -> None:
    header, rows = ["model", "samples per second"], [["runs/minilm", "1.5"]]
    assert text_table(header, rows, width=31) == text_table(header, rows)
    assert text_table(header, rows, width=24).splitlines() == [
        "model        samples per",
        "                  second",
        "-----------  -----------",
        "runs/minilm          1.5",
    ]
    assert text_table(header, rows, width=14).splitlines()[-2:] == ["runs/m     1.5", "inilm"]
