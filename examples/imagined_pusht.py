"""Learn to push by policy gradient (REINFORCE), in 16 Push-T worlds that exist only in a world model.

`train` works unchanged with any Gymnasium vector environment of images and Box actions.
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

import ivideogpt.envs  # noqa: F401  (makes ivideogpt/Imagined-v0 known)
from ivideogpt.errors import InputError

DISCOUNT = 0.95


class Policy(nn.Module):
    """Frames (n,H,W,3) uint8 -> a normal distribution over actions (n,A)."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 64), nn.Tanh(), nn.Linear(64, actions), nn.Tanh())
        self.log_std = nn.Parameter(torch.full((actions,), -1.0))

    def forward(self, frames: np.ndarray) -> torch.distributions.Normal:
        small = nn.functional.adaptive_avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - 0.5, 8)
        return torch.distributions.Normal(self.mean(small), self.log_std.exp())


def train(envs: VectorEnv, updates: int, steps: int, seed: int = 0) -> list[float]:
    """Mean reward a step of every update, each from `steps` steps of all environments."""
    torch.manual_seed(seed)
    space = envs.single_action_space
    policy = Policy(space.shape[0])
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    frames, _ = envs.reset(seed=seed)
    history, over = [], np.zeros(envs.num_envs, bool)
    for update in range(updates):
        log_probs, rewards, valid, overs = [], [], [], []
        for _ in range(steps):
            chosen = policy(frames)
            actions = chosen.sample()
            valid.append(~over)  # the step after an end only resets
            frames, reward, terminated, truncated, _ = envs.step(actions.numpy().clip(space.low, space.high))
            over = terminated | truncated
            log_probs.append(chosen.log_prob(actions).sum(-1))
            rewards.append(reward)
            overs.append(over)
        gains = np.array(rewards)  # becomes the discounted sum of rewards up to the end of the episode
        for t in reversed(range(steps - 1)):
            gains[t] += DISCOUNT * gains[t + 1] * ~overs[t]
        kept = np.array(valid)
        gains = torch.from_numpy((gains - gains[kept].mean()) / (gains[kept].std() + 1e-6)).float()
        loss = -(torch.stack(log_probs) * gains)[kept].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(np.array(rewards)[kept].mean()))
        print(f"update {update + 1} of {updates}: mean reward {history[-1]:.4f}")
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pusht-64", help="world model with an action input and a reward head")
    parser.add_argument("--updates", type=int, default=10)
    given = parser.parse_args()
    try:
        worlds = gymnasium.make_vec("ivideogpt/Imagined-v0", num_envs=16, model=given.model, contexts="pusht")
    except InputError as error:  # a model without a reward head, for example
        parser.error(str(error))
    train(worlds, given.updates, steps=15)
    worlds.close()
