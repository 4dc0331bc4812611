"""Whether the nodes of a cluster would see what is here: folders that all of them share.

Knows nothing of SLURM.
"""

import difflib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from pressroom.cluster import Cluster
from pressroom.console import log
from pressroom.files import home


def unshared(cluster: Cluster, inputs: dict[str, list[Path]]) -> Iterator[str]:
    """What lies where the nodes would not see it, each folder once.

    Args:
        cluster: Says which folders all nodes see; none: nothing is checked.
        inputs: Recipe key -> the files and folders that it stands for.
    """
    for entry in cluster.shared:
        if not Path(entry).is_dir():
            parent = Path(entry).parent
            names = [str(path) for path in parent.iterdir()] if parent.is_dir() else []
            close = difflib.get_close_matches(entry, names, n=1, cutoff=0.5)
            yield f"{entry}: no such folder here" + (f"; did you mean {close[0]}?" if close else "")
    ours = {"home: PRESSROOM_HOME, or the working directory": [home()]}
    ours |= {f"{name} in home": [home() / name] for name in ("data", "runs", ".cache/models")}
    told: list[Path] = []
    for what, paths in (ours | inputs).items():
        for path in paths:
            real = path.resolve()
            folder = real.parent if real.is_file() else real
            if not (_is_shared(real, cluster) or any(folder.is_relative_to(t) for t in told)):
                told.append(folder)
                yield (
                    f"{folder} ({what}) lies below none of {', '.join(cluster.shared)}: "
                    "the nodes would not see it"
                )


def _is_shared(path: Path, cluster: Cluster) -> bool:
    """Whether all nodes see a path that has no links in it."""
    seen = [Path(entry).resolve() for entry in cluster.shared]
    return not seen or any(path.is_relative_to(folder) for folder in seen)


def warn_of_python(cluster: Cluster, file: str) -> None:
    """Say where the nodes may lack the Python of a job: they can have what is not here.

    Args:
        cluster: Says what runs it.
        file: The cluster file's name.
    """
    python = cluster.python
    if cluster.container:
        command = cluster.container.split()[0]
        if shutil.which(command) is None:
            log.warning("%s: container: there is no %s here; the nodes need it", file, command)
    elif python and python.startswith("/") and not Path(python).is_file():
        log.warning("%s: python: %s: no such file here; the nodes need it", file, python)
    elif python is None and cluster.shared and not _is_shared(Path(sys.prefix).resolve(), cluster):
        log.warning(
            "%s: python: the one that submits is in %s, below none of `shared`: the nodes need "
            "the same there",
            *(file, sys.prefix),
        )
