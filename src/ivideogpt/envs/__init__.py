"""Environments to record from and to act in.

Importing this package makes `ivideogpt/Imagined-v0` known to `gymnasium.make` and `gymnasium.make_vec`, as importing
any package of Gymnasium environments does. The world model behind it is imported only when one is made.
"""

from __future__ import annotations

import gymnasium

IMAGINED_ID = "ivideogpt/Imagined-v0"

if IMAGINED_ID not in gymnasium.registry:
    gymnasium.register(
        id=IMAGINED_ID,
        entry_point="ivideogpt.envs.imagined_single:ImaginedEnv",
        vector_entry_point="ivideogpt.envs.imagined:ImaginedVectorEnv",
    )
