"""Several processes with torch.distributed between them, over loopback: how tests see data parallelism."""

import socket

import torch
from torch import distributed, multiprocessing


def run_in_processes(function, count, *arguments):
    """Call function(rank, *arguments) in `count` fresh processes of one gloo group; what each returned, by rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    multiprocessing.spawn(_member, (count, port, results, function, arguments), nprocs=count, join=True)
    by_rank = dict(results.get() for _ in range(count))
    return [by_rank[rank] for rank in range(count)]


def _member(rank, count, port, results, function, arguments):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    result = function(rank, *arguments)
    # numpy: tensors would be shared through file descriptors that close with this process
    results.put((rank, {name: value.detach().numpy() for name, value in result.items()}))
    distributed.destroy_process_group()
