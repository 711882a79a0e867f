"""Questions and answers in a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import sys
import textwrap
import unicodedata
from pathlib import Path

from bertjax.asking.reader import Reader, Reply
from bertjax.data.squad import Example
from bertjax.errors import UserError

AROUND = 100  # characters of the text that are shown on each side of an answer
BOLD, PLAIN = "\033[1;7m", "\033[0m"


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
      UserError: it is missing, is no file, or is not UTF-8.
    """
    try:
        return decode(Path(path).read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"--text {path}: no such file") from None
    except OSError as error:
        raise UserError(f"--text {path}: cannot be read ({error.strerror})") from None


def decode(content: bytes, where: str) -> str:
    """Text of bytes in UTF-8, with or without a byte order mark.

    Raises:
      UserError: they are not UTF-8; it names `where`.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: is not UTF-8 text (byte {error.start}); convert it first") from None


def answer_once(reader: Reader, text: str, question: str) -> None:
    """Print the answer to one question."""
    print(format_reply(reader.answer(text, question), text, color=sys.stdout.isatty()))


def converse(reader: Reader, text: str) -> None:
    """Answer questions until there are no more: typed at a prompt, or one a line from a pipe."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` arrow keys and a history
        print("Ask; Ctrl-D ends.")
    while True:
        try:
            question = input("\n? " if typed else "")
        except EOFError:
            break
        except UnicodeDecodeError:
            raise UserError("standard input: is not UTF-8 text; convert it first") from None
        if not question.strip():
            continue
        if not typed:
            print(f"? {question.strip()}")
        try:
            answer_once(reader, text, question)
        except UserError as error:
            print(f"error: {error}")
    if typed:
        print()


def format_example(example: Example) -> str:
    """An introduction for a person who gave no text."""
    text = textwrap.fill(example.context, width=100)
    return f"No --text FILE was given; here is a text to try:\n\n{text}\n\nFor example: {example.question}"


def format_reply(reply: Reply, text: str, *, color: bool) -> str:
    """Answer and score, the answer's place in the text, and the milliseconds: three lines.

    A fourth one warns if logits were NaN or infinite. The answer is marked by `color`, or else by >> and <<.
    """
    parts = "1 window" if reply.windows == 1 else f"{reply.windows} windows"
    times = f"{reply.tokenize_ms:.1f} ms tokenization + {reply.infer_ms:.1f} ms inference, {parts}"
    if reply.non_finite:
        times += f"\n  warning: NaN or infinite logits in {reply.non_finite} of them; this model is not sound"
    if reply.start is None or reply.end is None:
        return f"no answer in this text\n  {times}"
    before, after = text[: reply.start], text[reply.end :]
    left, right = before[-AROUND:], after[:AROUND]
    if len(before) > AROUND:
        left = "... " + left[left.find(" ") + 1 :]
    if len(after) > AROUND:
        right = right[: right.rfind(" ") + 1] + "..."
    begin, end = (BOLD, PLAIN) if color else (">>", "<<")
    answer = _one_line(reply.answer)
    place = f"characters {reply.start} to {reply.end}"
    return (
        f"{answer}   (score {reply.score:.1%}, {place})\n"
        f"  {_one_line(left)}{begin}{answer}{end}{_one_line(right)}\n  {times}"
    )


def _one_line(text: str) -> str:
    """Control characters as blanks: a line's end would break the form, an escape sequence the terminal."""
    return "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in text)
