import numpy as np
import pytest

from bertjax.data.windows import WindowSettings
from bertjax.engines.backend import Backend
from bertjax.engines.samples import SampleLibrary, read_dataset
from bertjax.engines.timing.cost import BatchCost
from bertjax.mlperf.plans import by_length
from bertjax.mlperf.queues import DynamicQueue, PlannedQueue
from bertjax.mlperf.sut import SystemUnderTest
from bertjax.modeldir.config import BertConfig

COST = BatchCost(batch=1e-3, token=1e-6, pair=0.0)


class Echo(Backend):
    """Answers each token with its own id, and minus its type, so that every answer can be told."""

    name = description = "echo"
    streams, batch_tokens = 2, 512

    def __init__(self):
        self.lengths = set()

    def infer(self, input_ids, attention_mask, token_type_ids):
        self.lengths.add(input_ids.shape[1])
        if (input_ids == self.poison).any():
            raise RuntimeError("poisoned")
        return (input_ids * attention_mask).astype(np.float32), -(token_type_ids.astype(np.float32))

    poison = -1


@pytest.fixture(scope="module")
def dataset(run_dir):
    return read_dataset(run_dir / "eval.json", run_dir / "student-int8", WindowSettings(max_seq=128))


@pytest.fixture
def library(dataset, run_dir):
    library = SampleLibrary(dataset, BertConfig.from_json(run_dir / "student-int8" / "config.json").pad_token_id)
    library.load(range(len(dataset.windows)))
    return library


def queues(library):
    return {
        "SingleStream": None,
        "Server": DynamicQueue(library.lengths, tokens=512, cost=COST, budget=0.13),
        "Offline": PlannedQueue(by_length(library.lengths, tokens=512)),
    }


class Unsound(Echo):
    """Echo with NaN in windows of an odd length, and infinity in all padding."""

    def infer(self, input_ids, attention_mask, token_type_ids):
        starts, ends = super().infer(input_ids, attention_mask, token_type_ids)
        starts[attention_mask.sum(1) % 2 == 1, 3] = np.nan
        return starts, np.where(attention_mask, ends, np.inf)


@pytest.mark.parametrize("scenario", ["SingleStream", "Server", "Offline"])
def test_samples_with_nan_or_infinity_are_counted_but_not_those_whose_padding_has_it(library, scenario):
    queue = queues(library)[scenario]
    system = SystemUnderTest(Unsound(), library, lambda *answer: None, queue, multiple=8)
    count = len(library.lengths)
    system.issue(list(range(count)), list(range(count)))
    system.close()
    assert system.failure is None and system.completed == count
    assert system.non_finite == (library.lengths % 2 == 1).sum() > 0


@pytest.mark.parametrize("scenario", ["SingleStream", "Server", "Offline"])
def test_every_sample_gets_its_own_answer_once(dataset, library, scenario):
    answers = {}

    def complete(ids, logits, lengths):
        for sample, row, length in zip(ids, logits, lengths, strict=True):
            assert sample not in answers
            answers[sample] = row[:length]

    echo = Echo()
    system = SystemUnderTest(echo, library, complete, queues(library)[scenario], multiple=32)
    order = np.random.default_rng(0).permutation(len(dataset.windows))
    system.issue([1000 + int(index) for index in order], order.tolist())
    system.close()
    assert len(answers) == len(dataset.windows) == system.completed
    multiple = {"SingleStream": 32, "Server": 16, "Offline": 8}[scenario]
    assert {length for length in echo.lengths if length % multiple} <= {library.longest}
    for index, window in enumerate(dataset.windows):
        answer = answers[1000 + index]
        np.testing.assert_array_equal(answer[:, 0], window.input_ids)
        np.testing.assert_array_equal(
            answer[:, 1], -(np.arange(len(window)) >= window.context_start).astype(np.float32)
        )


@pytest.mark.parametrize("scenario", ["SingleStream", "Server", "Offline"])
def test_a_failure_is_kept_and_not_thrown_at_loadgen(dataset, library, scenario):
    backend = Echo()
    backend.poison = int(dataset.windows[3].input_ids[1])
    system = SystemUnderTest(backend, library, lambda *answer: None, queues(library)[scenario], multiple=8)
    system.issue(range(len(dataset.windows)), range(len(dataset.windows)))
    system.close()
    assert str(system.failure) == "poisoned"


def test_unloaded_samples_are_not_served(library):
    library.unload([2])
    with pytest.raises(AssertionError, match="did not load"):
        library.gather(np.array([1, 2]), 128)
