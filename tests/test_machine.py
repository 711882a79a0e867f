"""A process's share of a machine, read from made-up kernel files."""

import pytest

from bertjax import machine


def write(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [
        # Version 2: a service within a slice that is stricter in memory.
        (
            {
                "proc/self/cgroup": "0::/slice/service\n",
                "sys/fs/cgroup/slice/service/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/slice/service/memory.max": "max\n",
                "sys/fs/cgroup/slice/cpu.max": "max 100000\n",
                "sys/fs/cgroup/slice/memory.max": "1073741824\n",
            },
            0.5,
            1 << 30,
        ),
        # Version 1 in a container, whose own group is mounted as the root and named as the host names it.
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/1234\n4:memory:/docker/1234\n1:name=systemd:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "2147483648\n",
            },
            1.5,
            2 << 30,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            None,
            None,
        ),
        ({}, None, None),
    ],
)
def test_limits_are_the_strictest_of_all_control_groups(tmp_path, files, cpus, memory):
    write(tmp_path, **files)
    assert machine.cgroup_limits(tmp_path) == machine.CgroupLimits(cpus=cpus, memory_bytes=memory)


@pytest.mark.parametrize(("cpus", "wanted"), [(0.5, 1), (2.5, 2), (64.0, 4), (None, 4)])
def test_cores_are_those_that_a_quota_keeps_busy(monkeypatch, cpus, wanted):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    limits = machine.CgroupLimits(cpus=cpus, memory_bytes=None)
    monkeypatch.setattr(machine, "cgroup_limits", lambda: limits)
    assert machine.cores.__wrapped__() == wanted


def test_memory_is_the_groups_where_that_is_less(monkeypatch):
    def limited(memory):
        monkeypatch.setattr(machine, "cgroup_limits", lambda: machine.CgroupLimits(cpus=None, memory_bytes=memory))
        return machine.memory_bytes.__wrapped__()

    whole = limited(None)
    assert whole > 1 << 20 and limited(1 << 20) == 1 << 20 and limited(1 << 62) == whole
