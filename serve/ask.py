"""Ask a model about a text, in the terminal or on a page in the browser.

    python serve/ask.py --text FILE
    python serve/ask.py --text FILE --question "Who built the bridge?"
    cat FILE | python serve/ask.py --question "Who built the bridge?"
    python serve/ask.py --text FILE < questions.txt
    python serve/ask.py --web

--web shows the model beside its teacher, where its run directory has one. A score is a probability over the spans that
the answer was chosen from; a text without any answer still gets one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bertjax import programs
from bertjax.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    add("--text", type=Path, help="UTF-8 text file (default: standard input with --question, else an example)")
    add("--question", help="answer this one and end (default: ask at a prompt, or read one a line from a pipe)")
    add("--backend", default="auto", help="auto (default), openvino, onnxruntime, tensorrt or jax")
    add("--web", action="store_true", help="serve a page instead of the terminal")
    add("--host", default="127.0.0.1", help="address that --web listens on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="port of --web (default: 8000; 0: any free one)")
    options = parser.parse_args()

    from bertjax.asking import server, terminal
    from bertjax.asking.reader import Reader, example_for, teacher_of
    from bertjax.rundir import newest_student

    model = options.model or newest_student()
    if options.web:
        if options.text or options.question is not None:
            raise UserError("--web: takes no --text and no --question; they are entered on the page")
        teacher = teacher_of(model)
        readers = [Reader(path, backend=options.backend) for path in (model, teacher) if path]
        server.serve(readers, example_for(model), host=options.host, port=options.port)
        return
    if options.text:
        text = terminal.read_text(options.text)
    elif options.question is not None and not sys.stdin.isatty():
        text = terminal.decode(sys.stdin.buffer.read(), "standard input")
    elif not sys.stdin.isatty():
        raise UserError("--text: give a file, or pipe the text in and give --question")
    else:
        example = example_for(model)
        text = example.context
        print(terminal.format_example(example))
    reader = Reader(model, backend=options.backend)
    if options.question is not None:
        terminal.answer_once(reader, text, options.question)
    else:
        terminal.converse(reader, text)


if __name__ == "__main__":
    programs.run(main, interrupted="ended")
