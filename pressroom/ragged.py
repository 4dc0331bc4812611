"""Lists of different lengths, one behind the other in a flat array. Pure functions."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]


def ranges(starts: "Integers", lengths: "Integers") -> "Integers":
    """Runs of consecutive numbers, one behind the other: where the elements of lists stand.

    >>> import numpy as np
    >>> ranges(np.array([7, 2]), np.array([3, 2])).tolist()
    [7, 8, 9, 2, 3]
    """
    import numpy as np

    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())
