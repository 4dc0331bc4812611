"""What people rather look at: pictures of datasets and plans, and a run's report.html.

Torch is not needed. Knows nothing of how the figures come about.
"""

from pressroom.report.pictures import packing_figure, scaling_figure, to_bytes

__all__ = ["packing_figure", "scaling_figure", "to_bytes"]
