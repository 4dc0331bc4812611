"""GPU kinds: figures that cannot be true are not in the table, and names lead to the right card."""

import re

import pytest

from pressroom.console import UserError
from pressroom.planner.gpu_kinds import KINDS, kind_for, kind_of, parse_gpus


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_is_possible(kind) -> None:
    label = re.fullmatch(r".*-(16|32|40|80)", kind.name)
    printed = int(label[1]) if label else {"h100": 80, "h200": 141, "b200": 180}.get(kind.name)
    if printed:
        assert 0.91 * printed < kind.memory_gib < printed
    # From the slowest wire to the fastest: memory, the node's GPUs, the host, other nodes.
    assert kind.gb_per_second > kind.link_gb_per_second >= kind.host_gb_per_second
    assert kind.host_gb_per_second > kind.network_gb_per_second > 0
    # With sparsity, or with both directions counted, a figure would be twice as much.
    assert 60 <= 1000 * kind.tflops / kind.gb_per_second <= 500
    assert kind.host_gb_per_second in (16, 32, 64)
    assert kind.has_bf16 == (kind.host_gb_per_second > 16)
    assert "datasheet" in kind.source or "white paper" in kind.source


def test_rates_are_dense_and_one_way() -> None:
    assert (kind_of("l4").tflops, kind_of("a10").tflops) == (121, 125)  # printed too: 242, 250
    assert kind_of("rtx4090").tflops == 165  # printed too: 330, accumulated in fp16
    assert kind_of("h200").link_gb_per_second == 450  # printed: 900
    assert kind_of("a100-40").network_gb_per_second == 8 * 200 / 8 / 8  # DGX A100


@pytest.mark.parametrize(
    ("device", "gib", "name"),
    [
        ("Tesla T4", 14.56, "t4"),
        ("Tesla T4", 15.75, "t4"),  # without ECC
        ("Tesla V100-SXM2-16GB", 15.77, "v100-16"),
        ("Tesla V100-SXM2-32GB", 31.73, "v100-32"),
        ("NVIDIA A10", 22.49, "a10"),  # nvidia-smi's figure
        ("NVIDIA L4", 22.03, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA GeForce RTX 3090", 23.69, "rtx3090"),
        ("NVIDIA GeForce RTX 4090", 23.52, "rtx4090"),
        ("NVIDIA A100-SXM4-40GB", 39.49, "a100-40"),
        ("A100-SXM4-80GB", 79.15, "a100-80"),
        ("NVIDIA H100 80GB HBM3", 79.19, "h100"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA B200", 178.35, "b200"),
    ],
)
def test_a_driver_s_name_is_a_kind(device: str, gib: float, name: str) -> None:
    found = kind_for(device, gib)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    ("device", "gib"),
    [
        ("NVIDIA A10G", 22.2),
        ("NVIDIA L40", 44.4),
        ("NVIDIA H100 PCIe", 79.1),
        ("NVIDIA H200 NVL", 139.8),
        ("NVIDIA GB200", 184.0),
        ("Tesla V100-PCIE-16GB", 15.77),
        ("NVIDIA GeForce RTX 3090 Ti", 23.6),
        ("NVIDIA GeForce RTX 4090 D", 23.5),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8),
        ("NVIDIA H200", 69.0),  # half of one
        ("AMD Instinct MI300X", 191.0),
        ("", 0.0),
    ],
)
def test_another_card_is_not_mistaken_for_one_of_the_table(device: str, gib: float) -> None:
    assert kind_for(device, gib) is None


@pytest.mark.parametrize(
    ("text", "nodes", "gpus_per_node", "name"),
    [
        ("8xA100-80", 1, 8, "a100-80"),
        ("2x8xH100", 2, 8, "h100"),
        ("h200", 1, 1, "h200"),
        (" 2Xrtx4090 ", 1, 2, "rtx4090"),
        ("16x4xv100-32", 16, 4, "v100-32"),
    ],
)
def test_gpus_as_people_write_them(text: str, nodes: int, gpus_per_node: int, name: str) -> None:
    assert parse_gpus(text) == (nodes, gpus_per_node, KINDS[name])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not GPUs: must be KIND, COUNTxKIND or NODESxCOUNTxKIND"),
        ("8", "not GPUs"),
        ("8x", "not GPUs"),
        ("8 h100", "not GPUs"),
        ("-1xh100", "not GPUs"),
        ("1.5xh100", "not GPUs"),
        ("2x2x8xh100", "not GPUs"),
        ("9" * 5000 + "xh100", "not GPUs"),
        ("0xh100", "at least 1"),
        ("0x8xh100", "at least 1"),
        ("8xh10", r"h10: no such GPU kind \(t4, v100-16, .*\); did you mean h100\?"),
        ("h100x8", r"did you mean h100\?"),
        ("8xa100", r"did you mean a100-40 or a100-80\?"),
        ("8xa100-80gb", r"did you mean a100-80\?"),
        ("8xtpu", r"b200\)$"),
    ],
)
def test_what_is_not_gpus_is_told(text: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        parse_gpus(text)
    assert re.search(said, str(told.value))


def test_a_kind_by_name() -> None:
    assert kind_of(" H100 ") is KINDS["h100"]
    with pytest.raises(UserError, match=r"4090: no such GPU kind .*; did you mean rtx4090\?"):
        kind_of("4090")
    with pytest.raises(UserError, match=r"b200\)$"):
        kind_of("")
