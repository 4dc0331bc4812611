"""Pictures show the numbers that they are given."""

import numpy as np

from pressroom.report import packing_figure


def test_what_the_picture_shows() -> None:
    lengths, tokens = np.array([128, 128, 30, 30]), np.array([128, 128, 60])
    figure = packing_figure("name, train", lengths, tokens, np.array([1, 1, 2]), 128)
    left, fill, shared = figure.axes
    assert figure.get_suptitle() == "name, train"
    assert left.get_title(loc="left") == "How long articles are: median 79 tokens"
    assert fill.get_title(loc="left") == "How full rows are: 82.3 % over all"
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    # Bars two tokens wide, the last of them ending at a row's length.
    bars = {round(p.get_x()): p.get_height() for p in left.patches if p.get_height()}
    assert bars == {29: 2, 127: 2}
    assert sum(p.get_height() for p in fill.patches) == 3
    assert [p.get_height() for p in shared.patches] == [2, 1]
