"""What goes wrong on one of the ranks of a sharded run: no rank is left hanging, and the next start goes on."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import json
import os
import re
import shutil
import signal
import sys
import time

import processes
import pytest
import torch
from endings import ending, same
from torch import nn
from toys import Toy, toy_dataset

from stable_ssl import ConfigError
from stable_ssl.data import Loader
from stable_ssl.runtime import watch

GONE = "Another process of the run is gone, or does something else. Its own messages may say why."


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(*map(block, range(3))), nn.Linear(8, 2))


def block(_):
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.1))


class Mortal(Toy):
    """Rank 1 is killed in its step 4, before it computes its second block, or while it writes its third checkpoint."""

    dies_in = ""

    def before_fit(self):
        if not self.dies_in or self.rank == 0:
            return
        if self.dies_in == "save":
            os.fsync = lambda descriptor: self.die()
            return
        register = {"forward": "register_forward_pre_hook", "backward": "register_full_backward_hook"}[self.dies_in]
        getattr(self.module["backbone"][0][1], register)(lambda *_: self.die())

    def die(self):
        if self.global_step >= 3:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, dies_in="", module=None, data=None, trainer_class=Mortal, **hardware):
    torch.manual_seed(0)
    trainer = trainer_class(
        {"train": Loader(data or toy_dataset(32), 4, shuffle=True)},
        {"backbone": module or blocks()},
        {"device": "cpu", "strategy": "fsdp", **hardware},
        {"optimizer": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), "epochs": 2},
        {"dump_path": folder, "checkpoint_every_step": 1},
    )
    trainer.dies_in = dies_in
    trainer()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of two ranks that are left alone."""
    from ranks import Ranks

    folder = tmp_path_factory.mktemp("alone")
    Ranks(train, folder).results()
    return folder


@pytest.mark.parametrize("dies_in", ["forward", "save", pytest.param("backward", marks=pytest.mark.slow)])
def test_a_rank_that_dies_ends_the_other_and_the_next_start_goes_on(start_ranks, tmp_path, alone, dies_in):
    ranks = start_ranks(train, tmp_path, dies_in)
    ranks.processes[1].wait(60)
    begun = time.monotonic()
    assert ranks.join(30) == [1, -signal.SIGKILL]
    assert time.monotonic() - begun < 30
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status["error"]) == ("failed", GONE)
    said = (tmp_path / "console.log").read_text()
    assert re.search(rf"The run failed at step \d: {re.escape(GONE)}", said)
    assert "gloo" not in said
    start_ranks(train, tmp_path).results()
    assert "Going on from" in (tmp_path / "console.log").read_text()
    assert same(ending(tmp_path), ending(alone))


def test_a_checkpoint_that_lacks_the_part_of_a_rank_is_set_aside(start_ranks, tmp_path, alone):
    folder = shutil.copytree(alone, tmp_path / "run")
    newest = max(folder.glob("checkpoints/step_*"))
    (newest / "shards" / "__1_0.distcp").unlink()
    start_ranks(train, folder).results()
    said = (folder / "console.log").read_text()
    assert f"{newest.name}/shards/__1_0.distcp' can't be read" in said
    assert "Going on from" in said
    assert (newest.parent / f"invalid_{newest.name}").is_dir()
    assert same(ending(folder), ending(alone))


def refused(folder, make):
    """Return what is said of a run that may not begin."""
    try:
        train(folder, **make(int(os.environ["RANK"])))
    except ConfigError as error:
        return str(error)


def fewer_samples(rank):
    return {"data": toy_dataset(32 - rank)}


def without_dimensions(rank):
    module = blocks()
    module.register_parameter("scale", nn.Parameter(torch.ones(())))
    return {"module": module}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (fewer_samples, "data.train: rank 1 has other data than rank 0 (samples: 31 instead of 32)."),
        (
            without_dimensions,
            "module.backbone.scale: hardware.strategy=fsdp can't divide a parameter without dimensions",
        ),
    ],
)
def test_a_run_that_can_not_train_so_is_refused_on_all_ranks_while_it_sets_up(start_ranks, tmp_path, make, expected):
    first, second = start_ranks(refused, tmp_path, make).results()
    assert first == second
    assert expected in first


class Mishap(Toy):
    """Rank 1 fails in its step 3."""

    def before_fit_step(self):
        if self.rank == 1 and self.global_step == 2:
            raise RuntimeError("a mishap")


def shown(folder, trainer_class=Toy, make=lambda rank: {}):
    """Return what an interpreter shows of a failure that nothing catches."""
    try:
        train(folder, trainer_class=trainer_class, **make(0))
    except Exception:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            sys.excepthook(*sys.exc_info())
        return said.getvalue()


def test_a_rank_that_ends_because_of_another_one_shows_a_sentence(start_ranks, tmp_path):
    why = "rank 1 failed: RuntimeError: a mishap"
    first, second = start_ranks(shown, tmp_path, Mishap).results()
    assert first == f"Rank 0 ends too: {why}\n"
    assert second.count("Traceback") == 1
    assert json.loads((tmp_path / "status.json").read_text())["error"] == why
    for said, sentence, hints in zip(console(tmp_path), (why, "RuntimeError: a mishap"), (0, 1), strict=True):
        assert f"The run failed at step 2: {sentence}\n" in said
        assert said.count("The script of this run goes on with it") == hints


def test_an_error_that_all_ranks_raise_alike_is_shown_in_full_by_one_of_them(start_ranks, tmp_path):
    sentence, full = sorted(start_ranks(shown, tmp_path, Toy, without_dimensions).results(), key=len)
    assert re.match(r"Rank [01] ends too: rank [01] failed: ConfigError: module.backbone.scale: .*\n$", sentence)
    assert full.count("Traceback") == 1


def share_blocks(folder):
    module = blocks()
    module[0][1] = module[0][2] = module[0][0]
    train(folder, module=module)


def test_blocks_that_share_parameters_are_sharded_too(start_ranks, tmp_path):
    start_ranks(share_blocks, tmp_path).results()
    weights = ending(tmp_path)[0]["modules"]
    assert all(
        torch.equal(weights[f"module.backbone.0.{n}.0.weight"], weights["module.backbone.0.0.0.weight"]) for n in (1, 2)
    )


def other_values(folder):
    train(folder, data=toy_dataset(32, seed=int(os.environ["RANK"])))


def test_other_values_on_one_rank_are_told(start_ranks, tmp_path):
    start_ranks(other_values, tmp_path).results()
    assert "data.train: rank 1 reads other samples than rank 0" in (tmp_path / "console.log").read_text()


def test_the_command_line_refuses_to_shard_over_one_process(tmp_path):
    command = [sys.executable, "-m", "stable_ssl", "train", "supervised_digits", "hardware.strategy=fsdp"]
    done = processes.run([*command, f"logger.dump_path={tmp_path / 'run'}"], cwd=tmp_path)
    assert done.returncode == 2
    assert "hardware.strategy: fsdp divides the model between several processes, but there is one" in done.stderr


class Apart(Toy):
    """After step 3, rank 0 does something that rank 1 does not do, but only once in a folder."""

    def after_fit_step(self):
        mark = self._run.folder.path / "apart"
        if self.rank == 0 and self.global_step == 3 and not mark.exists():
            mark.touch()
            self.alone()

    def alone(self):
        self.module["backbone"](torch.zeros(2, 8))


class Long(Apart):
    """Rank 0 is in a function in C for a while, and hears no signal."""

    def alone(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # which another thread gets
        ctypes.CDLL(None).sleep(4)


def part(folder, trainer_class, seconds=60.0):
    watch.SECONDS_BETWEEN_BEATS, watch.SECONDS_UNTIL_TOLD = 0.4, seconds
    train(folder, trainer_class=trainer_class)


def send(ranks, folder, *signals):
    """Send signals to all ranks once rank 0 does something else, and return the statuses and the seconds they took."""
    while not (folder / "apart").exists():
        assert ranks.processes[0].poll() is None
        time.sleep(0.05)
    begun = time.monotonic()
    for signum in signals:
        time.sleep(0.3)
        for process in ranks.processes:
            process.send_signal(signum)
    return ranks.join(20), time.monotonic() - begun


def console(folder):
    return [(folder / name).read_text() for name in ("console.log", "console_rank1.log")]


@pytest.mark.parametrize(
    ("signum", "second"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        pytest.param(signal.SIGINT, signal.SIGTERM, marks=pytest.mark.slow),  # what torchrun makes of two Ctrl-C
    ],
)
def test_a_second_signal_ends_processes_that_wait_for_each_other(start_ranks, tmp_path, signum, second):
    statuses, seconds = send(start_ranks(part, tmp_path, Apart), tmp_path, signum, second)
    assert statuses == [128 + signum] * 2
    assert seconds < 10
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["status"], status.get("error"), status["progress"]["global_step"]) == ("preempted", None, 3)
    for rank, said in enumerate(console(tmp_path)):
        assert re.search(
            rf"Rank {rank} ends at once: rank [01] got {signum.name} while it waited for the other processes in an "
            "exchange. All end without a save. The run goes on from its newest checkpoint.",
            said,
        )
        assert "The run failed" not in said
    start_ranks(part, tmp_path, Apart).results()
    assert "Going on from" in console(tmp_path)[0]


def test_processes_that_wait_for_each_other_say_where_and_one_signal_then_ends_them(start_ranks, tmp_path):
    ranks = start_ranks(part, tmp_path, Apart, 1.5)
    begun = time.monotonic()
    while not (tmp_path / "apart").exists() or not all("waiting" in said for said in console(tmp_path)):
        assert time.monotonic() - begun < 30
        time.sleep(0.1)
    assert send(ranks, tmp_path, signal.SIGTERM)[0] == [128 + signal.SIGTERM] * 2
    place = r"rank 0 in after_fit_step \(test_rank_faults.py, line \d+\), alone \(test_rank_faults.py, line \d+\); "
    place += r"rank 1 in hook \(stable_ssl/engine/agreement.py, line \d+\)"
    for said in (*console(tmp_path), json.loads((tmp_path / "status.json").read_text())["warning"]):
        assert len(re.findall(rf"waiting for each other at different places: {place}\. Usually", said)) == 1


def test_a_second_signal_does_not_end_a_process_that_computes_for_long_nor_one_that_waits_for_it(start_ranks, tmp_path):
    statuses, seconds = send(start_ranks(part, tmp_path, Long, 1.5), tmp_path, *[signal.SIGTERM] * 2)
    assert statuses == [128 + signal.SIGTERM] * 2
    assert seconds > 4
    assert max(tmp_path.glob("checkpoints/step_*")).name >= "step_00000003"
    for said in console(tmp_path):
        assert "at once" not in said
        assert "waiting" not in said
