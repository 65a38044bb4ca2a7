"""From a fitted scikit-learn pipeline to scores: which patients helped a network, and which hurt it.

The script trains a network with Adam on the pipeline's transformed features and scores the network's training
examples. The pipeline's own last step, another kind of estimator, is not scored.

    python docs/examples/sklearn_pipeline.py
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, StandardScaler

from adamshap.reference import Adam, Batch, Network, attribute

data = load_breast_cancer()
x_train, x_valid, named_train, named_valid = train_test_split(
    data.data, data.target_names[data.target], test_size=0.3, random_state=0, stratify=data.target
)
pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(x_train, named_train)
features, labels = pipeline[:-1], LabelEncoder().fit(pipeline.classes_)  # text labels become 0, 1, ...

train = Batch(features.transform(x_train), labels.transform(named_train))
valid = Batch(features.transform(x_valid), labels.transform(named_valid))
network = Network((train.x.shape[1], 8, len(labels.classes_)))
run = attribute(network, Adam(lr=0.01), train, valid, epochs=3, batch_size=32)

losses = run.history["valid_loss"]
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
for row in np.argsort(run.scores)[:3]:
    print(f"row {row}, {named_train[row]}: {run.scores[row]:+.1e}")
