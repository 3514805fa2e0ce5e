"""Two processes learn what one learns, from batches of half the size."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score
from toys import Toy, toy_dataset

import stable_ssl.runtime.world
from stable_ssl import ConfigError
from stable_ssl.data import Loader
from stable_ssl.losses import NTXEntLoss
from stable_ssl.trainers import JointEmbeddingTrainer

SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def linear(*sizes):
    torch.manual_seed(torch.initial_seed() % 1000)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


def train(cls, folder, batch_size, data, modules, optim, loss=None, logger=None, hardware=None):
    loaders = {
        name: Loader(dataset, batch_size, shuffle=name == "train", drop_last=False) for name, dataset in data.items()
    }
    trainer = cls(
        loaders,
        modules,
        {"device": "cpu", **(hardware or {})},
        {"optimizer": SGD, "epochs": 2, **optim},
        {"dump_path": folder, "level": 50, **(logger or {})},
        loss,
    )
    trainer()
    return {name: value.clone() for name, value in trainer.state_dict().items()}, trainer.global_step


def supervised(folder, batch_size, optim):
    data = {"train": toy_dataset(32), "test": toy_dataset(21, seed=1)}
    metrics = {"accuracy": MulticlassAccuracy(2, average="micro")}
    torch.manual_seed(len(str(optim)))
    modules = {"backbone": linear(8, 16, 2)}
    return train(Toy, folder, batch_size, data, modules, optim, logger={"metric": {"test": metrics}})


def assert_close(state, other):
    assert state.keys() == other.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("optim", [{}, {"accumulation_steps": 2}, {"grad_max_norm": 0.05}], ids=str)
def test_two_ranks_learn_what_one_does(start_ranks, tmp_path, optim):
    (first, steps), (second, _) = start_ranks(supervised, tmp_path / "two", 4, optim).results()
    alone, expected_steps = supervised(tmp_path / "one", 8, optim)
    assert steps == expected_steps
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_close(first, alone)
    two, one = records(tmp_path / "two"), records(tmp_path / "one")
    assert [r.keys() for r in two] == [r.keys() for r in one]
    for a, b in zip(two, one, strict=True):
        assert a == pytest.approx(b, rel=1e-4), (a, b)


def contrastive(folder, batch_size):
    x, y = toy_dataset(32).tensors
    views = torch.utils.data.StackDataset(torch.utils.data.StackDataset(x, x + 0.1), y)
    torch.manual_seed(0)
    modules = {
        "backbone": linear(8, 16),
        "projector": linear(16, 4),
        "backbone_classifier": linear(16, 2),
        "projector_classifier": linear(4, 2),
    }
    from stable_ssl.monitors import RankMe

    logger = {"monitor": {"train": {"rankme": RankMe(limit=80)}}}  # 5 of 8 steps
    return train(JointEmbeddingTrainer, folder, batch_size, {"train": views}, modules, {}, NTXEntLoss(), logger)


def test_a_contrastive_loss_over_two_ranks_is_that_of_the_whole_batch(start_ranks, tmp_path):
    (first, _), _ = start_ranks(contrastive, tmp_path / "two", 4).results()
    alone, _ = contrastive(tmp_path / "one", 8)
    assert_close(first, alone)
    for a, b in zip(records(tmp_path / "two"), records(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-3), (a, b)


def evaluate(folder, num_samples):
    metrics = {"accuracy": MulticlassAccuracy(2, average="micro"), "auroc": BinaryAUROC()}

    class Scoring(Toy):
        def predict(self):
            scores = super().predict()
            return scores

        def _eval_step(self, name_loader):
            for name, metric in self.logger["metric"][name_loader].items():
                scores = self.predict()
                metric.update(scores.softmax(1)[:, 1] if name == "auroc" else scores, self.batch[1])

    torch.manual_seed(0)
    data = {"test": toy_dataset(num_samples)}
    train(Scoring, folder, 4, data, {"backbone": linear(8, 16, 2)}, {}, logger={"metric": {"test": metrics}})


@pytest.mark.parametrize("num_samples", [21, 13, 1])
def test_an_evaluation_over_two_ranks_counts_every_sample_once(start_ranks, tmp_path, num_samples):
    start_ranks(evaluate, tmp_path / "two", num_samples).results()
    evaluate(tmp_path / "one", num_samples)
    assert records(tmp_path / "two") == records(tmp_path / "one")
    assert len(records(tmp_path / "two")) == 1


def test_ranks_share_out_one_global_order():
    dataset = torch.utils.data.TensorDataset(torch.arange(30))
    one = Loader(dataset, 8, shuffle=True)
    one.bind(seed=3, name="train", is_even=True)
    whole = [indices for indices, _ in one.batches(epoch=1)]
    shares = []
    for rank in range(4):
        loader = Loader(dataset, 2, shuffle=True)
        loader.bind(seed=3, name="train", rank=rank, world_size=4, is_even=True)
        shares.append([indices for indices, _ in loader.batches(epoch=1)])
        assert len(loader) == len(shares[-1]) == 4
    together = [list(itertools.chain(*pieces)) for pieces in zip(*shares, strict=True)]
    assert together[:3] == whole[:3]
    assert together[3] == whole[3][:4]  # what can't be shared out evenly is left out of training


class Uneven(Toy):
    """Rank 1 leaves out a mini-batch, and a whole group; so does rank 0, which does not ask for it."""

    def compute_loss(self):
        loss = super().compute_loss()
        # In step with the other rank only where both compute a loss.
        torch.distributed.all_reduce(torch.zeros(()))
        return loss

    def before_fit_step(self):
        from stable_ssl import BreakStep

        if self.rank == 1 and (self.epoch, self.batch_idx) in [(0, 1), (1, 0), (1, 1)]:
            raise BreakStep


def leaving_out(folder):
    torch.manual_seed(0)
    data = {"train": toy_dataset(32)}
    return train(Uneven, folder, 4, data, {"backbone": linear(8, 16, 2)}, {"accumulation_steps": 2})


def test_a_mini_batch_that_one_rank_leaves_out_is_left_out_by_all(start_ranks, tmp_path):
    (first, steps), (second, _) = start_ranks(leaving_out, tmp_path).results()
    assert steps == 3
    assert all(torch.equal(first[name], second[name]) for name in first)


class Breaking(Toy):
    """One rank breaks off in a hook, where the other would wait for it in the next collective."""

    def ask(self, hook):
        is_there = "step" not in hook or self.batch_idx == (0 if "eval" in hook else 2)
        if (self.rank, hook, self.epoch) == (self.who, self.where, self.when) and is_there:
            raise self.what("enough")

    def before_fit_epoch(self):
        self.ask("before_fit_epoch")

    def before_fit_step(self):
        self.ask("before_fit_step")

    def after_fit_step(self):
        self.ask("after_fit_step")

    def after_fit_epoch(self):
        self.ask("after_fit_epoch")

    def compute_loss(self):
        self.ask("compute_loss_step")
        return super().compute_loss()

    def after_eval(self):
        self.ask("after_eval")

    def after_eval_step(self):
        self.ask("after_eval_step")


def breaking(folder, who, where, what, when=0):
    stable_ssl.runtime.world.SECONDS_TO_MEET = 3.0
    Breaking.who, Breaking.where, Breaking.what, Breaking.when = who, where, getattr(stable_ssl, what), when
    torch.manual_seed(0)
    data = {"train": toy_dataset(32), "test": toy_dataset(8)}
    state, steps = train(Breaking, folder, 4, data, {"backbone": linear(8, 16, 2)}, {}, logger={"level": 30})
    return state, steps, json.loads((folder / "status.json").read_text())["status"]


@pytest.mark.parametrize(
    ("who", "where", "what", "expected"),
    [
        (0, "before_fit_epoch", "BreakEpoch", (4, "finished")),
        (1, "before_fit_step", "BreakEpoch", (6, "finished")),
        (0, "after_fit_step", "BreakEpoch", (7, "finished")),
        (1, "after_fit_step", "BreakStep", (8, "finished")),
        (0, "before_fit_step", "BreakAllEpochs", (2, "stopped")),
        (1, "after_fit_step", "BreakAllEpochs", (3, "stopped")),
        (0, "after_fit_epoch", "BreakAllEpochs", (4, "stopped")),
        (1, "after_eval", "BreakAllEpochs", (4, "stopped")),
    ],
)
def test_what_one_rank_breaks_off_in_a_hook_all_break_off(start_ranks, tmp_path, who, where, what, expected):
    (first, *ending), (second, *_) = start_ranks(breaking, tmp_path, who, where, what).results()
    assert tuple(ending) == expected
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("where", "what", "when"),
    [
        ("compute_loss_step", "BreakStep", 0),
        ("compute_loss_step", "BreakEpoch", 0),
        ("after_eval_step", "BreakAllEpochs", 0),
        ("after_eval_step", "BreakAllEpochs", 1),  # in the evaluation of the last epoch
    ],
)
def test_what_must_be_broken_off_on_all_ranks_and_is_not_ends_the_run(start_ranks, tmp_path, where, what, when):
    assert start_ranks(breaking, tmp_path, 1, where, what, when).join() == [1, 1]
    said = (tmp_path / "console_rank1.log").read_text()
    assert f"{what} was raised in compute_loss or in an evaluation on rank 1, but not on ranks [0]" in said
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


class Stream(torch.utils.data.IterableDataset):
    """Ends earlier on rank 1."""

    def __iter__(self):
        for number in range(5 - 2 * torch.distributed.get_rank()):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
            yield x, (x[:, 0] > 0).long()


def streaming(folder):
    torch.manual_seed(0)
    trainer = Toy(
        {"train": Stream()},
        {"backbone": linear(8, 16, 2)},
        {"device": "cpu"},
        {"optimizer": SGD, "epochs": 2, "max_steps": 5, "accumulation_steps": 2},
        {"dump_path": folder, "level": 30},
    )
    trainer()
    return trainer.state_dict(), trainer.global_step


def test_an_epoch_ends_for_all_ranks_when_a_stream_ends_for_one(start_ranks, tmp_path):
    (first, steps), (second, _) = start_ranks(streaming, tmp_path).results()
    assert steps == 2 * math.ceil(3 / 2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "a Stream is not shared out" in (tmp_path / "console.log").read_text()


class BadLoss(Toy):
    """Has a loss that is not a number at step 3, on rank 1, whose gradients are zeros all the same."""

    def compute_loss(self):
        loss = super().compute_loss()
        bad = self.rank == 1 and self.global_step == 2
        return torch.where(torch.tensor(bad), math.nan, loss)


def bad_loss(folder, nonfinite):
    torch.manual_seed(0)
    optim = {"nonfinite": nonfinite, "epochs": 1}
    data = {"train": toy_dataset(32)}
    logger = {"checkpoint_every_step": 1, "level": 30, "checkpoint_keep": 9}
    return train(BadLoss, folder, 4, data, {"backbone": linear(8, 16, 2)}, optim, logger=logger)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all(start_ranks, tmp_path):
    assert start_ranks(bad_loss, tmp_path, "raise").join() == [1, 1]
    assert "NanError: The loss of step 3 is nan" in (tmp_path / "console.log").read_text()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000001", "step_00000002"]
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(start_ranks, tmp_path):
    (first, steps), (second, _) = start_ranks(bad_loss, tmp_path, "skip").results()
    assert steps == 4
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [
        torch.load(path / "state.pt", weights_only=True)["modules"]["module.backbone.0.weight"]
        for path in sorted((tmp_path / "checkpoints").iterdir())
    ]
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])
    assert not torch.equal(states[2], states[3])


def wanting(folder, world_size):
    try:
        train(
            Toy,
            folder,
            4,
            {"train": toy_dataset()},
            {"backbone": linear(8, 2)},
            {},
            hardware={"world_size": world_size},
        )
    except ConfigError as error:
        return str(error)


def test_a_world_size_that_contradicts_the_launcher_is_refused(start_ranks, tmp_path):
    said = start_ranks(wanting, tmp_path, 3).results()
    assert all("hardware.world_size: 3, but torchrun started 2 processes" in words for words in said)


def different(folder):
    rank = int(os.environ["RANK"])
    try:
        train(Toy, folder, 4, {"train": toy_dataset()}, {"backbone": linear(8, 2)}, {"epochs": 2 + rank})
    except ConfigError as error:
        return str(error)


def test_ranks_with_different_configurations_are_refused(start_ranks, tmp_path):
    said = start_ranks(different, tmp_path).results()
    assert said[0] == said[1]
    assert "Rank 1 has another configuration than rank 0" in said[0]
    assert "optim.epochs: 2 on rank 0, 3 there." in said[0]


def two_trainers(folder):
    return [train(Toy, folder / name, 4, {"train": toy_dataset()}, {"backbone": linear(8, 2)}, {})[1] for name in "ab"]


def test_one_script_may_train_twice(start_ranks, tmp_path):
    assert start_ranks(two_trainers, tmp_path).results() == [[6, 6], [6, 6]]


class Counting:
    """No metric of torchmetrics."""

    def update(self, scores, labels):
        pass

    def compute(self):
        return 0.0

    def reset(self):
        pass


def counting(folder):
    data = {"train": toy_dataset(), "test": toy_dataset()}
    both = MetricCollection([MulticlassAccuracy(2), MulticlassF1Score(2)])
    logger = {"metric": {"test": {"mine": Counting(), "both": both}}}
    try:
        train(Toy, folder, 4, data, {"backbone": linear(8, 2)}, {}, logger=logger)
    except ConfigError as error:
        return str(error)


def test_a_metric_that_can_not_be_combined_over_ranks_is_refused(start_ranks, tmp_path):
    said = start_ranks(counting, tmp_path).results()
    assert "logger.metric.test: ['mine'] can't be combined over 2 processes" in said[0]


def rows(sizes):
    import torch.distributed as dist

    from stable_ssl.runtime.distributed import gather_rows

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = []
    for size in sizes:
        x = torch.arange(2 * size[rank]).view(-1, 2) + 100 * rank
        found.append(gather_rows(x if size[rank] else torch.empty(0, dtype=x.dtype)).tolist())
    dist.destroy_process_group()
    return found


def test_rows_of_ranks_with_differing_numbers_of_them_are_gathered(start_ranks):
    first, second = start_ranks(rows, [(2, 1), (0, 2), (1, 0), (0, 0)]).results()
    assert first == second
    assert first == [[[0, 1], [2, 3], [100, 101]], [[100, 101], [102, 103]], [[0, 1]], []]
