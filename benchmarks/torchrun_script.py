"""An ordinary script of torchrun, with a model that nothing else here knows: `benchmarks.torchrun` starts it.

A GRU learns which letter a word has most of. `--method` says how DDP exchanges gradients; rank 0 prints one line of JSON:
the seconds of each step, and the accuracy on the words of each step before it learned from them.
"""

import argparse
import json
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.functional import cross_entropy, one_hot

import workers.comm

LETTERS, LENGTH, WORDS = 6, 15, 16
METHODS = ("ddp-fp32", "ddp-fp16", "torch-powersgd", "ours")
RANK = 4


class Counter(nn.Module):
    """Words [n, length] of letters to logits [n, letters]; 1.5 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, 128)
        self.reader = nn.GRU(128, 384, num_layers=2, batch_first=True)
        self.answer = nn.Linear(384, LETTERS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        _, last = self.reader(self.letters(words))
        return self.answer(last[-1])


def parallel(method: str) -> nn.parallel.DistributedDataParallel:
    """The model under one method; PowerSGD in one bucket, as its hook does not survive more on gloo."""
    torch.manual_seed(1)
    bucket = 1024 if method == "torch-powersgd" else 25
    model = nn.parallel.DistributedDataParallel(Counter(), bucket_cap_mb=bucket)
    if method == "ddp-fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif method == "torch-powersgd":
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=RANK, start_powerSGD_iter=10, orthogonalization_epsilon=1e-8
        )
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif method == "ours":
        ours = workers.comm.CommState()
        model.register_comm_hook(ours, workers.comm.hook)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    dist.init_process_group("gloo")
    model = parallel(options.method)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.manual_seed(2 + dist.get_rank())
    seconds, accuracies = [], []
    for _ in range(options.steps):
        begun = time.perf_counter()
        words = torch.randint(LETTERS, (WORDS, LENGTH))
        most = one_hot(words, LETTERS).sum(dim=1).argmax(dim=1)
        answers = model(words)
        optimizer.zero_grad()
        cross_entropy(answers, most).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
        accuracies.append(float((answers.argmax(dim=1) == most).float().mean()))
    if dist.get_rank() == 0:
        print(json.dumps({"seconds": seconds, "accuracies": accuracies}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
