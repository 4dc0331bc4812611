"""What `cpu_fsdp.py` does for the ranks of tests; that FSDP is FSDP, every test of them asserts."""

from pathlib import Path

from ranks import run_ranks


def workers() -> tuple[str, int, int]:
    """Kind of ranks, how many, and how many workers the first of this rank's groups has."""
    from accelerate import PartialState

    ranks = PartialState(cpu=True)
    ranks.wait_for_everyone()
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return ranks.distributed_type.value, ranks.num_processes, names.count("pt_gloo_runloop\n")


def test_a_gloo_group_has_one_worker() -> None:
    """With two, a rank dies now and then, of a corrupted heap."""
    assert run_ranks("fsdp", workers) == [("MULTI_CPU", 2, 1)] * 2
