"""`python -m support.nullgpu.train_main ...`: `python -m gemfleet.train ...` on pretended GPUs.

torch counts the bytes of objects that ranks exchange with kernels, which compute nothing here: objects go through the
group's store instead, after a broadcast on the device that torch would use.
"""

from __future__ import annotations

import pickle
import runpy
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

on_devices = dist.broadcast_object_list
numbers = count()


def through_the_store(objects: list[Any], src: int = 0, group: Any = None, **options: Any) -> None:
    """As `broadcast_object_list` among all ranks; another group is left to torch."""
    if group is not None:
        on_devices(objects, src=src, group=group, **options)
        return
    dist.broadcast(torch.zeros(1, device=dist.distributed_c10d._get_object_coll_device(group)), src)
    store: Any = dist.distributed_c10d._get_default_store()
    key = f"objects-{next(numbers)}"
    if dist.get_rank() == src:
        store.set(key, pickle.dumps(objects))
    objects[:] = pickle.loads(store.get(key))


if __name__ == "__main__":
    dist.broadcast_object_list = through_the_store  # type: ignore[assignment]
    runpy.run_module("gemfleet.train", run_name="__main__", alter_sys=True)
