import numpy as np

from bertjax.data.batching import plan_inference
from bertjax.data.windows import WindowSettings
from bertjax.engines.backend import Backend
from bertjax.engines.choose import cpu_graph
from bertjax.engines.openvino import OpenVINOBackend
from bertjax.engines.samples import open_library
from bertjax.engines.timing import compare
from bertjax.engines.timing.compare import draw_windows, offline_passes
from bertjax.modeldir.config import BertConfig


def test_drawn_windows_fill_batches_and_smaller_ones():
    lengths = np.random.default_rng(0).integers(20, 200, 5000).astype(np.int32)
    chosen = draw_windows(lengths, count=500, tokens=1024)
    assert len(chosen) >= 500
    assert len(np.unique(chosen)) == len(chosen)
    for tokens in (1024, 512):
        plans = plan_inference(lengths[chosen], tokens=tokens, multiple=8, longest=200)
        full = [len(plan.rows) == tokens // plan.length for plan in plans]
        assert np.mean(full) > 0.7  # of a plain draw's batches a seventh


def test_some_batches_run_before_those_that_are_timed(run_dir):
    """A core that rested takes longer for a while."""
    model = run_dir / "student-int8"
    _, library = open_library(run_dir / "eval.json", model, WindowSettings(max_seq=128))
    chosen = np.arange(40)
    library.load(chosen.tolist())
    seen: list[int] = []

    class Counting(Backend):
        name = description = "counting"
        streams, batch_tokens = 1, 128

        def infer(self, input_ids, attention_mask, token_type_ids):
            seen.append(len(input_ids))
            return input_ids, input_ids

    passes = offline_passes(Counting(), library, chosen, tokens=128, repeats=2)
    assert passes.seconds(clock=lambda: sum(seen)) == 2 * len(chosen)
    assert len(seen) == len(passes.plans) + compare.AHEAD


def test_a_profiled_model_tells_what_its_steps_took(run_dir):
    model = run_dir / "student-int8"
    config = BertConfig.from_json(model / "config.json")
    backend = OpenVINOBackend(cpu_graph(model, config), config, streams=1, threads=1, profile=True)
    ones = np.ones((4, 64), np.int64)
    backend.infer(ones, ones, np.zeros_like(ones))
    seconds = backend.step_seconds()
    assert {"FullyConnected", "MVN"} <= {kind for kind, _ in seconds}
    assert 0 < sum(seconds.values()) < 60


def test_a_model_of_one_shape_answers_as_the_one_of_open_shape(run_dir):
    model = run_dir / "student-int8"
    config = BertConfig.from_json(model / "config.json")
    backend = OpenVINOBackend(cpu_graph(model, config), config, streams=2, threads=1, bf16=False)
    ids = np.random.default_rng(0).integers(5, config.vocab_size, (3, 3, 40))
    mask = (np.arange(40) < 33).astype(np.int64) * np.ones_like(ids[0])
    feeds = [(some, mask, np.zeros_like(mask)) for some in ids]
    wanted = np.asarray([backend.infer(*feed) for feed in feeds])[..., :33]
    backend.compile_shapes([(3, 40)])
    found = np.asarray([backend.infer(*feed) for feed in feeds])[..., :33]  # on both streams, one twice
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(theirs)
    feed = feeds[0]
    assert backend.infer(*(array[:2] for array in feed))[0].shape == (2, 40)  # not fixed, still answered
