"""The long-range head: latent multipoles and linear response of any backbone's node features.

Needs torch and e3nn (0.4.4 or 0.6), not mace-torch. A backbone gives HeadInput, and adds the energy
of HeadOutput to its own.
"""

import torch

# e3nn 0.4.4 keeps its constants in a file with slices, which torch loads only where they are named.
torch.serialization.add_safe_globals([slice])

from mace_polmp.head.convolutions import Edges  # noqa: E402
from mace_polmp.head.inputs import HeadInput, HeadOutput  # noqa: E402
from mace_polmp.head.long_range import LongRangeHead  # noqa: E402
from mace_polmp.head.options import LongRangeOptions  # noqa: E402

__all__ = ["Edges", "HeadInput", "HeadOutput", "LongRangeHead", "LongRangeOptions"]
