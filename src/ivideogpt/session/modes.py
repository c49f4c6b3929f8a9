"""A session is the same whatever mode of torch its caller is in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from ivideogpt.devices import no_autocast

P = ParamSpec("P")
R = TypeVar("R")


class _OnDevice(Protocol):
    @property
    def _device(self) -> torch.device: ...


S = TypeVar("S", bound=_OnDevice)


@contextmanager
def own_mode(device: torch.device) -> Iterator[None]:
    """Without gradients and autocast, and with ordinary tensors, which can be written outside of inference mode too."""
    with torch.inference_mode(False), torch.no_grad(), no_autocast(device):
        yield


def in_own_mode(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorates a session's method: it runs in `own_mode`."""

    @functools.wraps(method)
    def inside(self: S, /, *args: P.args, **named: P.kwargs) -> R:
        with own_mode(self._device):
            return method(self, *args, **named)

    return inside
