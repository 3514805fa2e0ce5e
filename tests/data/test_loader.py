from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import operator
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)  # fmt: skip
from torchvision.transforms import v2

from stable_ssl import ConfigError, DataError
from stable_ssl.data import IterableLoader, Loader, as_loader
from stable_ssl.data.order import draw
from stable_ssl.runtime.seeding import Stream, derive_seed, seed_generators
from tests.toys import Toy, toy_dataset


class Noise(Dataset):
    """Samples that draw from every global generator, and note that they were read."""

    def __init__(self, num_samples=20):
        self.num_samples = num_samples
        self.read = []

    def __len__(self):
        return self.num_samples

    def __getitem__(self, index):
        self.read.append(index)
        return index, torch.rand(2), np.random.rand(), random.random()


def flat(batches):
    return [(tuple(indices), [torch.as_tensor(part).tolist() for part in batch]) for indices, batch in batches]


def loader(num_workers=0, dataset=None, **options):
    made = Loader(dataset or Noise(), 6, shuffle=True, num_workers=num_workers, **options)
    made.bind(seed=3)
    return made


@pytest.mark.parametrize(
    ("num_workers", "options", "epochs"),
    [
        (2, {}, (0, 1, 2)), (8, {}, (1,)), (2, {"persistent_workers": True}, (0, 1, 2)), (2, {"prefetch_factor": 5}, (1,)),
        # Such a worker imports torch again, which takes seconds.
        (1, {"multiprocessing_context": "spawn"}, (1,)), (1, {"multiprocessing_context": "forkserver"}, (1,)),
    ],
)  # fmt: skip
def test_batches_do_not_depend_on_the_workers(num_workers, options, epochs):
    one, other = loader(), loader(num_workers, **options)
    for epoch in epochs:
        assert flat(one.batches(epoch)) == flat(other.batches(epoch))
    other.close()


def test_random_transforms_of_torchvision_do_not_depend_on_the_workers():
    transform = v2.Compose([v2.RandomResizedCrop(200), v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.GaussianBlur(9)])
    images = [(torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(i)), i) for i in range(4)]

    def views(num_workers):
        made = Loader(images, 2, views=[transform, transform], num_workers=num_workers)
        return torch.stack([torch.stack(batch[0]) for batch in made])

    assert torch.equal(views(0), views(2))


def test_the_order_is_the_documented_function_of_seed_and_epoch():
    for epoch in (0, 5):
        generator = torch.Generator().manual_seed(derive_seed(3, Stream.ORDER, epoch))
        expected = torch.randperm(20, generator=generator).tolist()
        assert [i for indices, _ in loader().batches(epoch) for i in indices] == expected


@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_an_epoch_can_be_entered_anywhere_without_reading_what_comes_before(start):
    whole = flat(loader().batches(2))
    entered = loader()
    assert flat(entered.batches(2, start)) == whole[start:]
    assert len(entered.dataset.read) == sum(len(indices) for indices, _ in whole[start:])


def test_an_epoch_can_be_left_and_another_begun_with_persistent_workers():
    made = loader(2, persistent_workers=True)
    next(made.batches(0))
    assert flat(made.batches(1)) == flat(loader().batches(1))
    made.close()


def test_close_leaves_no_processes():
    made = loader(2, persistent_workers=True)
    list(made.batches(0))
    assert multiprocessing.active_children()
    made.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("num_samples", "drop_last"), [(24, False), (21, False), (21, True)])
def test_ranks_share_one_global_order(num_samples, drop_last):
    def shares(world_size, batch_size):
        made = []
        for rank in range(world_size):
            one = Loader(Noise(num_samples), batch_size, shuffle=True, drop_last=drop_last)
            one.bind(seed=3, rank=rank, world_size=world_size)
            assert len(one) == len(list(one.batches(1)))
            made.append([indices for indices, _ in one.batches(1)])
        return [functools.reduce(operator.iadd, parts, []) for parts in zip(*made, strict=True)]

    assert shares(1, 8) == shares(2, 4) == shares(4, 2)
    if not drop_last:
        assert sorted(functools.reduce(operator.iadd, shares(2, 4), [])) == list(
            range(num_samples)
        )  # each once: nothing padded


SAMPLERS = {
    "weighted": lambda n: {"sampler": WeightedRandomSampler([1.0] * n, n)},
    "with replacement": lambda n: {"sampler": RandomSampler(range(n), replacement=True)},
    "private generator": lambda n: {
        "sampler": WeightedRandomSampler([1.0] * n, n, generator=torch.Generator().manual_seed(os.getpid()))
    },
    "batches": lambda n: {"batch_sampler": BatchSampler(RandomSampler(range(n)), 6, False)},
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_any_sampler_is_a_function_of_seed_and_epoch(make):
    def batches(epoch):
        torch.rand(3)
        options = make(20)
        made = as_loader(
            DataLoader(Noise(), **({} if "batch_sampler" in options else {"batch_size": 6}), **options),
            "train",
        )
        made.bind(seed=3)
        return flat(made.batches(epoch))

    assert batches(0) == batches(0)
    assert batches(0) != batches(1)


@pytest.mark.parametrize(
    "sampler", [SequentialSampler, RandomSampler, functools.partial(DistributedSampler, num_replicas=2, rank=0)]
)
def test_a_sampler_of_some_of_the_samples_gives_no_others(sampler):
    made = as_loader(DataLoader(Noise(), 6, sampler=sampler(range(12))), "train")
    made.bind(seed=3)
    assert sorted(index for indices, _ in made.batches(0) for index in indices) == list(range(12))


class Wrapped(DistributedSampler):
    """As that of catalyst, it shares out what another sampler gives."""

    def __init__(self, sampler, num_replicas=1):
        super().__init__(list(sampler), num_replicas, rank=0)

    def __iter__(self):
        return (self.dataset[place] for place in super().__iter__())


def test_a_sampler_of_a_kind_of_its_own_keeps_its_samples():
    made = as_loader(DataLoader(Noise(), 6, sampler=Wrapped(range(8, 20))), "train")
    made.bind(seed=3)
    assert sorted(index for indices, _ in made.batches(0) for index in indices) == list(range(8, 20))


@pytest.mark.parametrize("make", [Loader, lambda *args, **options: as_loader(DataLoader(*args, **options), "train")])
@pytest.mark.parametrize("name", ["sampler", "batch_sampler"])
def test_a_sampler_that_shares_samples_out_is_refused_where_they_would_be_shared_out_twice(make, name):
    sampler = Wrapped(range(8, 20), num_replicas=2)
    sampler = BatchSampler(sampler, 6, False) if name == "batch_sampler" else sampler
    with pytest.raises(ConfigError, match=f"{name}: a Wrapped shares the samples out over 2 processes"):
        make(Noise(), **{name: sampler})


def test_drawing_leaves_the_callers_generators_alone():
    before = torch.get_rng_state()
    draw(WeightedRandomSampler([1.0] * 20, 20), seed=3, epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plain_dataloader_is_rebuilt_with_its_options(caplog):
    def collate(samples):
        return samples

    source = DataLoader(
        Noise(), 5, shuffle=True, num_workers=1, collate_fn=collate, drop_last=True, prefetch_factor=3,
        persistent_workers=True, timeout=7,
    )  # fmt: skip
    with caplog.at_level("INFO", "stable_ssl"):
        made = as_loader(source, "train")
    assert isinstance(made, Loader)
    assert "data.train: the DataLoader is rebuilt" in caplog.text
    assert (made.batch_size, made.shuffle, made.drop_last, made.num_workers) == (5, True, True, 1)
    assert made._collate is collate
    assert {made._options[k] for k in ("prefetch_factor", "timeout")} == {3, 7}
    assert not as_loader(DataLoader(Noise(), 5), "test").shuffle


def test_a_plain_dataloader_that_can_not_be_rebuilt_is_named():
    with pytest.raises(ConfigError, match="data.train: dataset: this list is empty"):
        as_loader(DataLoader([], 5), "train")


def test_one_sample_can_be_one_batch():
    batches = list(as_loader(DataLoader([torch.ones(3), torch.zeros(2)], batch_size=None), "train").batches(0))
    assert [batch.tolist() for _, batch in batches] == [[1, 1, 1], [0, 0]]


def test_lists_of_batches_are_entered_anywhere():
    made = as_loader([1, 2, 3], "train")
    assert list(made.batches(0, 1)) == [(None, 2), (None, 3)]
    assert len(made) == 3


def test_a_stream_with_state_goes_on_where_its_state_says():
    class Stream:
        def __init__(self):
            self.position = 0

        def __iter__(self):
            while self.position < 5:
                self.position += 1
                yield self.position
            self.position = 0

        def state_dict(self):
            return {"position": self.position}

        def load_state_dict(self, state):
            self.position = state["position"]

    first = as_loader(Stream(), "train")
    batches = first.batches(0)
    assert [next(batches)[1] for _ in range(2)] == [1, 2]
    again = as_loader(Stream(), "train")
    again.load_state_dict(first.state_dict())
    assert [batch for _, batch in again.batches(0, start=2)] == [3, 4, 5]
    assert [batch for _, batch in again.batches(1)] == [1, 2, 3, 4, 5]


def test_another_stream_is_fast_forwarded_with_a_warning(caplog):
    class Stream:
        def __iter__(self):
            return iter([1, 2, 3])

    made = as_loader(Stream(), "train")
    assert isinstance(made, IterableLoader)
    assert [batch for _, batch in made.batches(0, 2)] == [3]
    assert "not promised" in caplog.text
    with pytest.raises(TypeError):
        len(made)


def test_a_stream_draws_under_the_seed_of_its_place():
    class Endless:
        def __iter__(self):
            while True:
                yield torch.rand(1).item(), np.random.rand(), random.random()

    made = as_loader(Endless(), "train")
    made.bind(seed=3, name="train")
    for epoch in (0, 5):
        for position, (_, drawn) in zip(range(3), made.batches(epoch), strict=False):
            seed_generators(3, Stream.SAMPLE, epoch, position)
            assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())


def broken_folder(tmp_path):
    from PIL import Image

    from stable_ssl.data import ImageFolder

    (tmp_path / "cat").mkdir()
    for index in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / "cat" / f"{index}.png")
    (tmp_path / "cat" / "2.png").write_bytes(b"no image")
    return ImageFolder(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_does_not_decode_is_named(tmp_path, num_workers):
    made = Loader(Subset(broken_folder(tmp_path), [3, 2, 1]), 1, num_workers=num_workers)
    made.bind(0, name="train")
    with pytest.raises(DataError, match=r"data.train: sample 1 \('.*2.png'\) can't be read"):
        list(made)


def test_samples_that_make_no_batch_are_described():
    with pytest.raises(DataError, match=r"make no batch: \(float32 \(2,\), int\); \(float32 \(3,\), int\)"):
        list(Loader([(torch.ones(2), 0), (torch.ones(3), 1)], 2))


class Deadly(Noise):
    def __init__(self, end=lambda: os.kill(os.getpid(), signal.SIGKILL)):
        super().__init__()
        self.end = end

    def __getitem__(self, index):
        if index == 7:
            self.end()
        return torch.tensor([index])


class DeadlyStream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return map(Deadly().__getitem__, range(9))


def interrupt():
    raise KeyboardInterrupt


ENDS = {
    "killed": (Deadly().end, "was killed by SIGKILL"),
    "_exit": (lambda: os._exit(3), "ended with exit code 3"),
    "exit": (lambda: sys.exit("bye"), "ended with exit code 1"),
    "interrupt": (interrupt, "ended with exit code 0"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_dies_is_reported_with_the_samples_waited_for(end):
    end, said = ENDS[end]
    # Its first batch may be lost with it, if the queue between the processes still held it.
    match = (
        rf"data.data: a worker process died .* samples \[(0, 1|5, 6).*: process \d+ {said}\. If memory ran out, lower"
    )
    with pytest.raises(DataError, match=match):
        list(Loader(Deadly(end), 5, num_workers=1))


@pytest.mark.parametrize("wrap", [lambda loader: loader, lambda loader: (batch for batch in loader)])
def test_a_worker_of_a_stream_that_dies_is_reported(wrap):
    made = as_loader(wrap(torch.utils.data.DataLoader(DeadlyStream(), 5, num_workers=1)), "train")
    with pytest.raises(DataError, match=r"data.train: a worker process died .* while batches from number [01] on"):
        list(made.batches(0))


def test_a_connection_that_breaks_before_its_worker_is_gone_is_explained(monkeypatch):
    made = Loader(Noise(), 1, num_workers=1)
    batches = made.batches(0)
    next(batches)
    iterator = made._workers._iterator

    def get(timeout):
        os.kill(iterator._workers[0].pid, signal.SIGKILL)
        raise ConnectionResetError

    monkeypatch.setattr(iterator._data_queue, "get", get)
    monkeypatch.setattr(iterator._workers[0], "is_alive", lambda: True)  # as it may seem for a moment
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's may be late too
    try:
        with pytest.raises(DataError, match="data.data: a worker process died .* was killed by SIGKILL"):
            next(batches)
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_a_worker_that_dies_while_a_step_is_computed_is_that_of_its_set(make_toy):
    class Killing(Toy):
        def compute_loss(self):
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
            time.sleep(1)  # torch's handler interrupts it
            return super().compute_loss()

    data = {"train": Loader(toy_dataset(), 4, num_workers=1, prefetch_factor=1)}
    with pytest.raises(
        DataError, match=r"^data.train: a worker process died .* while batches were read: .* by signal: Killed"
    ):
        make_toy(Killing, data)()


def test_an_error_that_a_worker_reports_is_not_its_death():
    def fail():
        raise ConnectionResetError("mine")

    with pytest.raises(DataError, match=r"sample 7 can't be read: ConnectionResetError: mine"):
        list(Loader(Deadly(fail), 5, num_workers=1))


def test_workers_ignore_the_signals_that_ask_the_run_to_stop():
    others = set(multiprocessing.active_children())
    made = loader(1, persistent_workers=True)
    batches = made.batches(0)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(worker.pid, signum)
    assert len(list(batches)) == 3
    made.close()
    assert not worker.is_alive()


WORKERS = {"num_workers": 1}
REFUSED = [
    ({"dataset": []}, "dataset: this list is empty"),
    ({"dataset": iter([1])}, "dataset: a list_iterator has no __len__ and no __getitem__; if it is a stream"),
    ({"batch_size": 0}, "batch_size: must be a whole number of at least 1, or none, not 0"),
    ({"batch_size": True}, "batch_size: .* not True"),
    ({"views": []}, r"views: must be a transform, a list of transforms, or none, not \[\]"),
    ({"views": ["flip"]}, "views: .* not \\['flip'\\]"),
    ({"on": 1}, "on: must be 'auto', 'cpu' or 'device', not 1"),
    ({"shuffle": "maybe"}, "shuffle: must be true, false or none, not 'maybe'"),
    ({"drop_last": 3}, "drop_last: must be true or false, not 3"),
    ({"sampler": 5}, "sampler: must be a sampler or none, not 5"),
    ({"batch_sampler": True}, "batch_sampler: must be a sampler or none, not True"),
    ({"num_workers": True}, "num_workers: must be a whole number of at least 0, not True"),
    ({"num_workers": "2"}, "num_workers: .* not '2'"),
    ({"collate_fn": "list"}, "collate_fn: must be a function or none, not 'list'"),
    ({"worker_init_fn": 0}, "worker_init_fn: must be a function or none, not 0"),
    ({"pin_memory": "yes"}, "pin_memory: must be true or false, not 'yes'"),
    ({"prefetch_factor": 0, **WORKERS}, "prefetch_factor: must be a whole number of at least 1, or none, not 0"),
    ({"timeout": -1, **WORKERS}, "timeout: must be a number of seconds, at least 0, not -1"),
    ({"timeout": float("nan"), **WORKERS}, "timeout: .* not nan"),
    (
        {"multiprocessing_context": "spwan", **WORKERS},
        r"multiprocessing_context: must be one of \['fork', .* not 'spwan'",
    ),
    ({"persistent_workers": 2, **WORKERS}, "persistent_workers: must be true or false, not 2"),
    ({"batch_size": 2, "drop_last": True}, "batch_size: 2 is more than the 1 samples, and drop_last leaves nothing"),
    ({"persistent_workers": True, "timeout": 5}, "num_workers: must be at least 1 for persistent_workers and timeout"),
    ({"shuffle": True, "sampler": [0]}, "shuffle: a sampler decides on the order already"),
    ({"sampler": [0], "batch_sampler": [[0]]}, "sampler: a batch_sampler decides on the samples already"),
    ({"drop_last": True, "batch_sampler": [[0]]}, "drop_last: a batch_sampler decides on the batches already"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_a_wrong_argument_is_named_with_its_value(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Loader(**{"dataset": [1], **options})
    assert len(caught.value.problems) == 1


def test_all_problems_of_a_loader_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        Loader([], "8", views=3, on="gpu", shuffle="maybe", drop_last=3, timeout=-1, pin_memory="yes")
    named = [problem.split(":")[0] for problem in caught.value.problems]
    assert named == [
        "dataset",
        "batch_size",
        "views",
        "on",
        "shuffle",
        "drop_last",
        "pin_memory",
        "timeout",
        "num_workers",
    ]


def test_torch_s_contexts_are_taken():
    context = torch.multiprocessing.get_context("spawn")
    assert Loader([1], multiprocessing_context=context, num_workers=1)._options["multiprocessing_context"] is context


def test_a_data_set_without_a_loader_is_explained():
    with pytest.raises(ConfigError, match=r"data.train: a data set \(Noise\) without a loader"):
        as_loader(Noise(), "train")


SCRIPT = """
import json, os, sys, torch
from stable_ssl.data import Loader

folder, cases = sys.argv[1], json.loads(sys.argv[2])
children = []
for number, (end, persistent) in enumerate(cases):
    children.append(os.fork())
    if not children[-1]:
        break
else:
    print(*[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    sys.exit()
# From here on, each child is a script of its own.
for stream, kind in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{folder}/{number}.{kind}", os.O_CREAT | os.O_WRONLY), stream)
data = torch.utils.data.TensorDataset(torch.arange(20))
batches = Loader(data, 5, num_workers=2, persistent_workers=persistent).batches(0)
print(next(batches)[0], flush=True)
exec(end)
"""


def test_scripts_that_leave_their_workers_end(tmp_path):
    """Torch is imported once, before the scripts part."""
    ends = ["keep = [batches]", "keep = [batches]; keep.append(keep); del keep, batches", "1 / 0"]
    cases = [(end, persistent) for end in ends for persistent in (False, True)]
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(cases)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as scripts:
        try:
            codes = scripts.communicate(timeout=300)[0].split()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(scripts.pid, signal.SIGKILL)  # a script that hangs
    for number, (end, _) in enumerate(cases):
        error = (tmp_path / f"{number}.err").read_text()
        assert (tmp_path / f"{number}.out").read_text() == "[0, 1, 2, 3, 4]\n", error
        assert ("ZeroDivisionError" in error) == (codes[number] != "0") == (end == "1 / 0"), error
        assert "Exception ignored" not in error


def test_batches_of_a_batch_sampler_are_of_one_size_on_all_ranks_in_training():
    class Uneven(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([[0, 1, 2], [3], [4, 5], [6, 7, 8], [9]])

        def __len__(self):
            return 5

    def shares(is_even):
        loaders = [Loader(list(range(10)), batch_sampler=Uneven()) for _ in range(2)]
        for rank, made in enumerate(loaders):
            made.bind(0, rank=rank, world_size=2, is_even=is_even)
            assert len(made) == len(list(made.batches(0)))
        return [[indices for indices, _ in made.batches(0)] for made in loaders]

    assert shares(True) == [[[0], [4, 5]], [[3], [6, 7]]]
    assert shares(False) == [[[0, 1, 2], [4, 5], [9]], [[3], [6, 7, 8]]]


def test_what_can_not_be_sent_to_a_worker_is_named():
    loader = Loader([0, 1], views=lambda image: image, num_workers=1, multiprocessing_context="spawn")
    loader.bind(0, "train")
    with (
        pytest.raises(DataError, match=r"^data\.train\.views \(function\) can't be pickled"),
        pytest.warns(UserWarning, match="pickle"),
    ):
        next(iter(loader))
