import pytest

from bertjax.errors import UserError
from bertjax.rundir import read_metrics, read_settings


@pytest.mark.parametrize("name, read", [("metrics.json", read_metrics), ("settings.json", read_settings)])
@pytest.mark.parametrize("content", [b'{"teacher": ', b"\xff\xfe"])
def test_a_broken_record_is_told_with_its_file_and_an_absent_one_is_empty(tmp_path, name, read, content):
    assert read(tmp_path) == {}
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not valid JSON .*; .+"):
        read(tmp_path)
