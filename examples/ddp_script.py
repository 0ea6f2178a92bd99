"""An ordinary script of torchrun: a GRU learns which letter a word has most of. The lines marked (1) and (2) are ours.

torchrun --standalone --nproc-per-node 2 examples/ddp_script.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

import workers.comm

LETTERS, LENGTH, STEPS = 6, 15, 150


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(LETTERS, 32)
        self.reader = nn.GRU(32, 96, batch_first=True)
        self.answer = nn.Linear(96, LETTERS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        _, last = self.reader(self.letters(words))
        return self.answer(last[0])


dist.init_process_group("gloo")
torch.manual_seed(1)
model = nn.parallel.DistributedDataParallel(Counter())
state = workers.comm.CommState()  # (1)
model.register_comm_hook(state, workers.comm.hook)  # (2)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

torch.manual_seed(2 + dist.get_rank())
for step in range(STEPS):
    words = torch.randint(LETTERS, (64, LENGTH))
    most = one_hot(words, LETTERS).sum(dim=1).argmax(dim=1)
    answers = model(words)
    loss = cross_entropy(answers, most)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if dist.get_rank() == 0 and step % 30 == 29:
        accuracy = (answers.argmax(dim=1) == most).float().mean()
        print(f"step {step + 1}: loss {loss:.3f}, accuracy {accuracy:.2f}", flush=True)

dist.barrier()  # nobody leaves while another may still need what it sends
dist.destroy_process_group()
