"""Files in portions: together they are the file, record by record, number by number."""

import itertools
from pathlib import Path

import pytest
from conftest import invented_articles
from hypothesis import given
from hypothesis import strategies as st
from test_readers import KINDS, write

from data_prep.articles import OWN_NAMES
from data_prep.portions import portions
from data_prep.readers import WHOLE, read_records

LINES = st.lists(
    st.sampled_from([b"", b"{}", b"[1, 2]", b"{not json", b"7" * 50, "\u00e9".encode()])
)


def read(path: Path, target_bytes: int) -> list:
    found = portions(path, target_bytes)
    return [r for portion in found for r in read_records(path, "a", OWN_NAMES, portion)]


@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(1, 200))
def test_lines_are_cut_nowhere(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    end: bytes,
    ended: bool,
    target_bytes: int,
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(end.join(lines) + (end if ended else b""))
    assert read(path, target_bytes) == list(read_records(path, "a", OWN_NAMES))
    found = portions(path, target_bytes)
    assert all(p.stop == q.start for p, q in itertools.pairwise(found))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target_bytes", [1, 2000, 10**9])
def test_every_kind_of_file_is_the_same_in_portions(
    tmp_path: Path, kind: str, target_bytes: int
) -> None:
    path = write(tmp_path / kind, invented_articles(100))
    if kind == "a.parquet":
        import pyarrow.parquet as pq

        pq.write_table(pq.read_table(path), path, row_group_size=7)
    whole = list(read_records(path, "a", OWN_NAMES))
    assert [number for number, _ in whole] == list(range(1, 101))
    assert read(path, target_bytes) == whole
    assert (len(portions(path, target_bytes)) == 1) == (target_bytes == 10**9)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_damaged_file_is_left_to_its_reader(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / kind, invented_articles(20))
    path.write_bytes(path.read_bytes()[:40])
    assert portions(path, 1) == [WHOLE]
