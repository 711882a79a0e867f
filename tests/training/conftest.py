"""Windows that the stages are trained on."""

from __future__ import annotations

import pytest

from bertjax.data.dataset import Dataset, from_examples
from bertjax.data.squad import Answer, Example
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings
from tests.models import tiny_config, write_random_model


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve windows of different lengths, each answered by its context's first word."""
    folder = tmp_path_factory.mktemp("model") / "m"
    write_random_model(folder, tiny_config(quantized=False), seed=0)
    words = ["king", "river", "city"]
    examples = []
    for index in range(12):
        context = " ".join(words[(index + i) % 3] for i in range(5 + index))
        examples.append(
            Example(id=str(index), question="who", context=context, answers=(Answer(text=context.split()[0], start=0),))
        )
    return from_examples(examples, load_tokenizer(folder), WindowSettings(max_seq=40, max_query=8))
