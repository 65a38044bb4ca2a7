"""Score your own PyTorch training loop: which of 400 handwritten digits helped, and which hurt.

The loop itself is unchanged. Before each ``optimizer.step()``, `from_torch` copies the weights and Adam's moments, and
the engine's `scores` computes the effect of each example of the batch on the loss over the validation examples. This is
for multilayer perceptrons; `adamshap.torch` attributes other models, and loops with clipping or accumulation.

    python docs/examples/torch_loop.py
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from adamshap.gpu import scores
from adamshap.reference import Batch, from_torch

x, y = load_digits(return_X_y=True)
x = x.astype(np.float32) / 16
train_x, train_y, valid = x[:400], y[:400].copy(), Batch(x[400:600], y[400:600])
wrong = np.random.default_rng(0).choice(400, 40, replace=False)
train_y[wrong] = (train_y[wrong] + 1) % 10  # forty wrong labels to look for

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
optimizer = torch.optim.Adam(model.named_parameters(), lr=0.01)
totals = np.zeros(400)
for _ in range(2):
    for rows in torch.randperm(400).split(20):
        index = rows.numpy()
        before = from_torch(model, optimizer, loss="cross_entropy")  # added
        totals[index] += scores(before.step(Batch(train_x[index], train_y[index]), valid))  # added
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.tensor(train_x[index])), torch.tensor(train_y[index])).backward()
        optimizer.step()

lowest = np.argsort(totals)[:40]
print(f"{np.isin(lowest, wrong).sum()} of the 40 lowest scores are wrong labels")
