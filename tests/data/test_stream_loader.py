"""Streams: an order of their own per epoch, shared out, the same with any number of workers, resumed at any batch."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from toys import Toy

from stable_ssl import ConfigError, DataError
from stable_ssl.augmentations import Affine, CenterCrop, MultiView, View
from stable_ssl.data import HuggingFaceDataset, HuggingFaceStream, Loader, StreamLoader, as_loader

datasets = pytest.importorskip("datasets")
split_by_node = pytest.importorskip("datasets.distributed").split_dataset_by_node

SIZES = {0: 9, 1: 5, 2: 8, 3: 7}
VIEW = View([Affine(degrees=30)])


def picture(number):
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 5 * number % 256, np.uint8)).save(out, "PNG")
    return {"bytes": b"nothing" if number == 999 else out.getvalue(), "path": None}


def read(shards):
    for shard in shards:
        for number in range(SIZES[shard]):
            yield {"image": picture(shard * 10 + number), "label": shard * 10 + number}


ALL = sorted(shard * 10 + number for shard, size in SIZES.items() for number in range(size))
FEATURES = {
    "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
    "label": datasets.Value("int64"),
}


def made(generate=read, shards=(0, 1, 2, 3), **changes):
    return datasets.IterableDataset.from_generator(
        generate, gen_kwargs={"shards": list(shards)}, features=datasets.Features(FEATURES), **changes
    ).cast_column("image", datasets.Image())


def loader(rank=0, world_size=1, is_even=False, dataset=None, x="image", **options):
    stream = HuggingFaceStream(made() if dataset is None else dataset, x=x, y="label" if x else None)
    found = StreamLoader(stream, **{"batch_size": 3, "shuffle": True, "buffer": 7, **options})
    found.bind(5, "train", rank, world_size, is_even=is_even)
    return found


def labels(batches):
    return [labels.tolist() for _, (_, labels) in batches]


def joined(lists):
    return [*itertools.chain(*lists)]


def equal(batches, others):
    return all(a == b and torch.equal(x, y) for (a, (x, _)), (b, (y, _)) in zip(batches, others, strict=True))


def test_each_sample_comes_once_per_epoch_in_an_order_that_only_seed_and_epoch_decide():
    first, again, later = (labels(loader().batches(epoch)) for epoch in (0, 0, 1))
    assert first == again != later
    assert sorted(joined(first)) == sorted(joined(later)) == ALL
    assert joined(labels(loader(shuffle=False).batches(0))) == ALL
    # A block of a buffer's length holds whole shards' samples, mixed.
    shards = [label // 10 for label in joined(first)]
    assert list(dict.fromkeys(shards)) != sorted(SIZES)
    assert len(set(shards[:7])) <= 2


@pytest.mark.parametrize(("world_size", "are_own"), [(2, True), (3, False)])
def test_processes_share_out_shards_or_samples(world_size, are_own):
    shares = [joined(labels(loader(rank, world_size).batches(1))) for rank in range(world_size)]
    assert sorted(joined(shares)) == ALL
    shards = [{label // 10 for label in share} for share in shares]
    assert set.isdisjoint(*shards[:2]) == are_own
    assert are_own or max(map(len, shares)) - min(map(len, shares)) <= 1
    even = [labels(loader(rank, world_size, is_even=True).batches(1)) for rank in range(world_size)]
    assert {len(batch) for share in even for batch in share} == {3}


def test_more_processes_and_workers_than_shards_share_out_the_samples():
    shares = [joined(labels(loader(rank, 6, num_workers=rank % 2 * 2).batches(0))) for rank in range(6)]
    assert sorted(joined(shares)) == ALL


@pytest.mark.parametrize("views", [VIEW, lambda image: image.float() + torch.rand(())])
def test_workers_change_nothing_and_views_are_functions_of_the_sample(views):
    alone, shared = (loader(views=views, num_workers=workers) for workers in (0, 2))
    batches = list(alone.batches(1))
    assert equal(batches, list(shared.batches(1)))
    shared.close()
    if views is VIEW:  # the same by another way: made of the decoded images
        images = {number: np.asarray(Image.open(io.BytesIO(picture(label)["bytes"]))) for numbers, (_, found) in batches
                  for number, label in zip(numbers, found.tolist(), strict=True)}  # fmt: skip
        for numbers, (seen, _) in batches:
            assert torch.equal(MultiView([VIEW]).make([images[n] for n in numbers], 5, 1, numbers)[0], seen)


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
@pytest.mark.parametrize(
    "change", [lambda d: d, lambda d: d.map(lambda e: {"label": e["label"]}).filter(lambda e: e["label"] % 3)]
)
def test_a_stream_goes_on_after_any_batch_with_its_state_or_by_reading_again(rank, world_size, change):
    def new():
        return loader(rank, world_size, dataset=change(made()), num_workers=0)

    whole = list(new().batches(2))
    for start in range(1, len(whole)):
        stopped, resumed = new(), new()
        batches = stopped.batches(2)
        for _ in range(start):
            next(batches)
        resumed.load_state_dict(stopped.state_dict())
        assert equal(whole[start:], list(resumed.batches(2, start)))
        assert equal(whole[start:], list(new().batches(2, start)))
    assert labels(resumed.batches(3)) == labels(new().batches(3))


def test_a_resumed_stream_reads_a_buffer_again_and_not_what_came_before():
    asked = []

    def counted(shards):
        for example in read(shards):
            asked.append(example["label"])
            yield example

    def new():
        return loader(dataset=made(counted), shuffle=False, buffer=4, batch_size=2)

    stopped = new()
    batches = stopped.batches(0)
    for _ in range(11):
        next(batches)
    asked.clear()
    resumed = new()
    resumed.load_state_dict(stopped.state_dict())
    assert labels(resumed.batches(0, 11))[0] == ALL[22:24]
    assert min(asked) >= 20  # the third shard: `datasets` reads from its beginning on


def test_a_sample_that_can_not_be_read_is_named():
    def broken(shards):
        yield {"image": picture(1), "label": 1}
        yield {"image": picture(999), "label": 2}

    def failing(shards):
        yield {"image": picture(1), "label": 1}
        raise OSError("the file is gone")

    with pytest.raises(
        DataError, match=r"sample 1 \('IterableDataset, shard 0, example 1'\) can't be read: .* is no image"
    ):
        list(loader(dataset=made(broken, [0]), shuffle=False).batches(0))
    with pytest.raises(
        DataError, match="shard 0 of 'IterableDataset' can't be read after example 1: OSError: the file is gone"
    ):
        list(loader(dataset=made(failing, [0])).batches(0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: loader(dataset=made().shuffle(seed=1)), "the buffer that does it can't be saved"),
        (lambda: loader(dataset=split_by_node(made(), 0, 2)), "is split by node already"),
        (lambda: loader(x="img"), r"has no column \['img'\]; it has \['image', 'label'\]"),
        (lambda: HuggingFaceStream(datasets.Dataset.from_dict({"a": [1]})), "is no stream. HuggingFaceDataset"),
        (lambda: HuggingFaceDataset(made()), "use a HuggingFaceStream instead, in a StreamLoader"),
        (lambda: as_loader(HuggingFaceStream(made()), "train"), "data.train: a stream without a loader. Wrap it"),
        (lambda: Loader(HuggingFaceStream(made())), "is a stream, without samples by number; use a StreamLoader"),
        (lambda: StreamLoader(made(), 0, buffer=0), "stream: must be a HuggingFaceStream, not"),
        (lambda: loader(batch_size=0, buffer=True, timeout=-1), "batch_size: .*\nbuffer: must be .*, not True.\ntimeout: must be"),
        (lambda: loader(prefetch_factor=2), "num_workers: must be at least 1 for prefetch_factor"),
        (lambda: loader(views=VIEW, collate_fn=list), "collate_fn: declared views make the batch"),
    ],
)  # fmt: skip
def test_what_can_not_be_a_stream_is_refused_with_what_to_do(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("is_shuffled", [True, False])
def test_a_stream_whose_state_lacks_its_buffer_is_named(is_shuffled, caplog):
    as_loader(made().map(dict).shuffle(seed=0).filter(len) if is_shuffled else made(), "train").bind(0, "train")
    assert ("shuffled by a buffer that its state does not hold" in caplog.text) == is_shuffled


def test_views_are_checked_on_the_first_image_wherever_it_is():
    one = made().filter(lambda example: example["label"] == 21)
    assert [len(list(loader(rank, 3, dataset=one, views=VIEW).batches(0))) for rank in range(3)] == [1, 0, 0]
    with pytest.raises(DataError, match="data.train: 'IterableDataset' has no sample."):
        loader(dataset=made().filter(lambda example: False), views=VIEW)
    with pytest.raises(ConfigError, match="data.train.views: "):
        loader(views=View([CenterCrop(16)]))


def test_a_loader_can_be_looked_at_and_gives_dicts_without_x(caplog):
    generator = np.random.default_rng(0)

    def noisy(image):
        return torch.from_numpy(np.asarray(image) + generator.random())

    found = StreamLoader(HuggingFaceStream(made()), 4, views=noisy)
    batch = next(iter(found))
    assert batch["image"].shape == (4, 4, 4, 3)
    assert batch["label"].tolist() == ALL[:4]
    assert (
        "these generators can't be seeded, so what they draw is not the same in each run: dataset.transform"
        in caplog.text
    )


def test_another_order_is_refused_when_a_run_goes_on(make_toy):
    class Small(Toy):
        def predict(self):
            return self.forward(self.batch[0].flatten(1)[:, :8])

        def compute_loss(self):
            return torch.nn.functional.cross_entropy(self.predict(), self.batch[1] % 2)

    def run(**options):
        make_toy(Small, {"train": loader(**options)}, max_steps=2)()

    run()
    with pytest.raises(
        ConfigError, match=r"order of the stream: .* '4 shards, 1 processes, shuffled by 7', this one '4 sh"
    ):
        run(buffer=8)
    with pytest.raises(ConfigError, match=r"order of the stream: .*'3 shards, 1 processes, shuffled by 7'"):
        run(dataset=made(shards=[0, 1, 2]))
