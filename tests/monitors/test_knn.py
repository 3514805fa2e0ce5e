from __future__ import annotations

import functools
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from toys import Toy, toy_backbone, toy_dataset

from stable_ssl import ConfigError
from stable_ssl.data import Loader
from stable_ssl.exceptions import DataError
from stable_ssl.monitors import KNN, knn_scores


def features(num_bank=60, num_queries=25, dim=5, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_bank,), generator=generator)
    centres = torch.randn(num_classes, dim, generator=generator)
    bank = centres[labels] + torch.randn(num_bank, dim, generator=generator)
    return bank, labels, 3 * torch.randn(num_queries, dim, generator=generator)


def looped(bank, labels, queries, num_classes, k, temperature):
    """The paper's votes, neighbour by neighbour."""
    bank, queries, scores = bank.double().numpy(), queries.double().numpy(), []
    for query in queries:
        similarities = [float(v @ query / np.linalg.norm(v) / np.linalg.norm(query)) for v in bank]
        votes = [0.0] * num_classes
        for i in sorted(range(len(bank)), key=lambda i: -similarities[i])[:k]:
            votes[int(labels[i])] += math.exp(similarities[i] / temperature)
        scores.append(votes)
    return torch.tensor(scores)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (60, 0.1)])
@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_equals_the_formula_in_loops_up_to_a_factor_for_each_query(k, temperature, chunk):
    bank, labels, queries = features()
    found = knn_scores(bank, labels, queries, 4, k, temperature, chunk)
    expected = looped(bank, labels, queries, 4, k, temperature)
    torch.testing.assert_close(found / found.sum(1, True), (expected / expected.sum(1, True)).float())


@pytest.mark.parametrize("k", [1, 5, 20])
def test_predicts_what_scikit_learn_does(k):
    from sklearn.neighbors import KNeighborsClassifier

    bank, labels, queries = features(300, 200)
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = theirs.fit(bank.double(), labels).predict_proba(queries.double())
    found = knn_scores(bank, labels, queries, 4, k, 0.07)
    np.testing.assert_allclose(found / found.sum(1, True), expected, atol=1e-4)


def test_predicts_what_lightly_does():
    knn = pytest.importorskip("lightly.utils.benchmarking.knn", reason="lightly is not installed: pip install '.[dev]'")
    bank, labels, queries = features(300, 200)
    normal = torch.nn.functional.normalize
    expected = knn.knn_predict(normal(queries, dim=1), normal(bank, dim=1).T, labels, 4, knn_k=20, knn_t=0.07)
    assert torch.equal(knn_scores(bank, labels, queries, 4, 20, 0.07).argmax(1), expected[:, 0])


def test_a_low_temperature_does_not_overflow():
    bank, labels, queries = features()
    scores = knn_scores(bank, labels, queries, 4, 20, temperature=1e-4)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(1), knn_scores(bank, labels, queries, 4, k=1).argmax(1))


def test_a_bank_that_is_too_small_is_refused(make_toy):
    bank, labels, queries = features(5)
    with pytest.raises(ValueError, match="20 neighbours are more than the 5 labelled"):
        knn_scores(bank, labels, queries, 4)
    sets = data()
    sets["bank"].dataset.targets = sets["bank"].dataset.tensors[1].tolist()  # 6 of 30 are -1
    with pytest.raises(ConfigError, match="25 neighbours are more than the 24 labelled samples of data.bank"):
        make_toy(data=sets, logger={"monitor": {"test": {"knn": KNN("bank", k=25)}}}).setup()
    part = torch.utils.data.Subset(sets["bank"].dataset, range(10))  # 2 of them are -1
    with pytest.raises(ConfigError, match="9 neighbours are more than the 8 labelled samples of data.bank"):
        make_toy(
            data=data() | {"bank": Loader(part, 8)}, logger={"monitor": {"test": {"knn": KNN("bank", k=9)}}}
        ).setup()
    for arguments in ({"k": 0}, {"temperature": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            KNN("bank", **arguments)


def some_unlabelled(dataset):
    x, y = dataset.tensors
    return torch.utils.data.TensorDataset(x, torch.where(torch.arange(len(y)) % 5 == 4, -1, y))


def data(batch_size=8, num_test=21, num_bank=30):
    return {
        "train": Loader(toy_dataset(32), batch_size, shuffle=True),
        "bank": Loader(some_unlabelled(toy_dataset(num_bank, seed=1)), batch_size),
        "test": Loader(some_unlabelled(toy_dataset(num_test, seed=2)), batch_size),
    }


def by_hand(trainer, k=20, temperature=0.07):
    """The accuracy with the weights at hand, of both sets as a whole."""
    trainer.eval()
    with torch.no_grad():
        bank, queries = (
            (trainer.forward(x)[y >= 0], y[y >= 0])
            for x, y in (trainer.data[name].dataset.tensors for name in ("bank", "test"))
        )
    scores = looped(bank[0], bank[1], queries[0], 2, k, temperature)
    return float((scores.argmax(1) == queries[1]).float().mean())


def test_the_log_has_the_accuracy_of_the_weights_at_hand(make_toy):
    trainer = make_toy(data=data(), logger={"monitor": {"test": {"knn": KNN("bank")}}})
    trainer()
    found = [record["test/knn_k20_t0.07"] for record in trainer.get_logs() if "test/knn_k20_t0.07" in record]
    assert len(found) == 2
    assert found[-1] == pytest.approx(by_hand(trainer))
    assert 0.5 < found[-1] < 1


def test_views_autocast_and_a_set_without_labels(make_toy):
    class Views(Toy):
        seen = set()

        def forward(self, x):
            out = super().forward(x)
            self.seen.add((self.training, out.dtype, out.requires_grad))
            return out

    x, y = toy_dataset(12, seed=2).tensors
    stacked = torch.utils.data.StackDataset(torch.utils.data.StackDataset(x, x), y)
    sets = {**data(), "test": Loader(stacked, 4), "none": [[x, torch.full_like(y, -1)]]}
    monitors = {name: {"knn": KNN("bank", k=3)} for name in ("test", "none")}
    trainer = make_toy(Views, sets, logger={"monitor": monitors}, hardware={"precision": "bf16"}, epochs=1)
    trainer()
    record = {key: value for line in trainer.get_logs() for key, value in line.items()}
    assert 0 <= record["test/knn_k3_t0.07"] <= 1
    assert "none/knn_k3_t0.07" not in record
    assert Views.seen == {(True, torch.bfloat16, True), (False, torch.bfloat16, False)}


def test_weights_are_the_same_bits_with_and_without_it(make_toy, tmp_path):
    ends = []
    for name, monitor in (("a", {}), ("b", {"test": {"knn": KNN("bank")}})):
        torch.manual_seed(0)
        trainer = make_toy(data=data(), logger={"dump_path": tmp_path / name, "monitor": monitor}, epochs=3)
        trainer()
        ends.append(trainer)
    a, b = (trainer.state_dict() for trainer in ends)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert a.keys() == b.keys()


def test_the_generators_are_left_as_they_were(make_toy, tmp_path):
    class Drawing(Toy):
        drawn = ()

        def after_eval(self):
            self.drawn = (*self.drawn, float(torch.rand(())))

    draws = []
    for name, monitor in (("a", {}), ("b", {"test": {"knn": KNN("bank")}})):
        trainer = make_toy(Drawing, data(), logger={"dump_path": tmp_path / name, "monitor": monitor})
        trainer()
        draws.append(trainer.drawn)
    assert draws[0] == draws[1]


@pytest.mark.parametrize("bank", ["train", "test", "_size", "elsewhere"])
def test_a_bank_that_is_no_other_evaluation_set_is_refused_before_training(make_toy, bank):
    trainer = make_toy(data={**data(), "_size": 3}, logger={"monitor": {"test": {"knn": KNN(bank)}}})
    with pytest.raises(ConfigError, match=rf"logger.monitor.test.knn.bank: '{bank}' must be .* \['bank'\]"):
        trainer.setup()


def test_more_neighbours_than_images_and_a_place_in_training_are_refused_too(make_toy):
    with pytest.raises(
        ConfigError, match=r"logger.monitor.test.knn.k: 31 neighbours .* 30 labelled samples of data.bank"
    ):
        make_toy(data=data(), logger={"monitor": {"test": {"knn": KNN("bank", k=31)}}}).setup()
    with pytest.raises(ConfigError, match=r"logger.monitor.train.knn: KNN is for evaluation sets"):
        make_toy(data=data(), logger={"monitor": {"train": {"knn": KNN("bank")}}}).setup()


def test_batches_without_labels_are_refused(make_toy):
    sets = {**data(), "bank": Loader(torch.utils.data.TensorDataset(toy_dataset().tensors[0]), 8)}
    trainer = make_toy(data=sets, logger={"monitor": {"test": {"knn": KNN("bank", k=3)}}})
    with pytest.raises(DataError, match=r"KNN needs batches \[images, labels\]"):
        trainer()


def on_ranks(folder, batch_size, num_test, num_bank):
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    trainer = Toy(
        data(batch_size, num_test, num_bank),
        {"backbone": backbone},
        {"device": "cpu"},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1), "epochs": 2},
        {"dump_path": folder, "level": 50, "monitor": {"test": {"knn": KNN("bank", k=3)}}},
    )
    trainer()
    return trainer.state_dict()


def scores_in(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["test/knn_k3_t0.07"] for record in records if "test/knn_k3_t0.07" in record]


@pytest.mark.parametrize(("num_test", "num_bank"), [(21, 30), (13, 33), (1, 7)])
def test_two_ranks_count_every_sample_once(start_ranks, tmp_path, num_test, num_bank):
    start_ranks(on_ranks, tmp_path / "two", 4, num_test, num_bank).results()
    on_ranks(tmp_path / "one", 8, num_test, num_bank)
    assert scores_in(tmp_path / "two") == scores_in(tmp_path / "one")
    assert len(scores_in(tmp_path / "one")) == 2


class StopsInBank(Toy):
    """Gets a signal when the three batches of the test set, and the first of the bank, are embedded."""

    armed, count = True, 0

    def forward(self, x):
        self.count += not self.training
        if type(self).armed and self.count == 4:
            type(self).armed = False
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)


def test_a_run_that_was_stopped_while_the_bank_was_embedded_logs_the_same(make_toy, tmp_path):
    def make(name):
        return make_toy(
            StopsInBank, data(), {"backbone": toy_backbone()},
            logger={"dump_path": tmp_path / name, "monitor": {"test": {"knn": KNN("bank", k=3)}}},
        )  # fmt: skip

    stopped = make("stopped")
    with pytest.raises(SystemExit):
        stopped()
    assert (stopped.count, stopped.epoch) == (4, 0)
    make("stopped")()
    make("alone")()
    assert scores_in(tmp_path / "stopped") == scores_in(tmp_path / "alone")
    assert len(scores_in(tmp_path / "alone")) == 2
