import pytest

from bertjax.errors import UserError
from bertjax.mlperf.conf import read_user_conf


def test_the_more_exact_line_holds(tmp_path):
    path = tmp_path / "user.conf"
    path.write_text(
        "# a comment\n"
        "bert.Server.target_qps = 40\n*.Server.target_qps = 30\n\n*.*.min_duration = 5000 # another\n"
        "bert.*.min_duration = 6000\nresnet50.Server.min_query_count = 9\nbert.Offline.target_qps = 7\n"
    )
    assert read_user_conf(path, "Server") == {"target_qps": 40.0, "min_duration": 6000.0}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bert.Server.target_qps=40", "spaces included"),
        ("bert.Server.target_qps = many", "spaces included"),
        ("bert.Server.target_qsp = 40", "target_qsp"),
        ("*.*.sample_index_rng_seed = 7", "LoadGen keeps its own sample_index_rng_seed"),
        ("bert.Sevrer.target_qps = 40", "Sevrer"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, told):
    path = tmp_path / "user.conf"
    path.write_text("bert.Offline.target_qps = 1\n" + line + "\n")
    with pytest.raises(UserError, match=f"user.conf:2: .*{told}"):
        read_user_conf(path, "Server")
