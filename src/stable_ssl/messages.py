"""The messages that users meet most, and what to do about each: the source of docs/troubleshooting.md.

A test checks that the package prints each of them. "…" stands for what differs from case to case.
"""

from __future__ import annotations

from typing import NamedTuple


class Message(NamedTuple):
    """A message and its remedy.

    Parameters
    ----------
    text
        The text, or its beginning.
    meaning
        What has happened.
    remedy
        What to do.
    """

    text: str
    meaning: str
    remedy: str


MESSAGES: dict[str, list[Message]] = {
    "A run does not start": [
        Message(
            "…: unknown key (value …).…",
            "A setting is misspelt, or stands in another section.",
            "Use the key that the message suggests. The page configuration.md lists all keys.",
        ),
        Message(
            "'…' holds a run with another configuration; nothing was done.",
            "The folder has checkpoints of a run with other settings. The lines below it list the differences.",
            "To go on with that run, undo the changes. To train with the changes, begin a branch of it, or choose "
            "another `logger.dump_path`.",
        ),
        Message(
            "'…' is of a run with other data or another optimizer; nothing was done.",
            "The samples, the batch size, the views or the optimizer's rates are not those of the checkpoint, although "
            "the configuration does not show it. The lines below it list the differences.",
            "Give the same data and optimizer again, or begin a branch.",
        ),
        Message(
            "'…' holds a run of another behaviour; nothing was done.",
            "Another version of the library began the run. A default or the meaning of a setting has changed since.",
            "Begin a branch, or go on with the version that began the run. If that one is newer, update stable-ssl.",
        ),
        Message(
            "branch_from: '…' holds another run; nothing was done.",
            "The folder for a branch has checkpoints of a run that is no branch of this one, or of another step.",
            "Choose another `--out` or `logger.dump_path`.",
        ),
        Message(
            "logger.dump_path: '…' is not of a run, and would be overwritten.",
            "The folder has a `config.yaml` of yours, and a run writes a file of this name.",
            "Choose another `logger.dump_path`. If it came from a variable of the shell, see that the variable is set.",
        ),
        Message(
            "logger.dump_path: another process is running in '…'. Wait for it, or choose another folder.",
            "A run is going on in this folder, and its process holds the lock.",
            "Look into `status.json` for its host and pid.",
        ),
        Message(
            "logger.dump_path: another trainer of this process uses '…'.…",
            "The script has set up two trainers with one folder, and the first one has not ended.",
            "Launch the first trainer or delete it, or give the second one a folder of its own.",
        ),
        Message(
            "hardware.world_size: …, but … started … process…",
            "The launcher, such as torchrun or Slurm, started another number of processes than the configuration says.",
            "Make the two agree, or leave `hardware.world_size` out.",
        ),
        Message(
            "…, which is an error in …. Ask for a GPU (slurm.gpus=1, or sbatch --gpus=1), or set hardware.device and "
            "hardware.precision to what there is, such as cpu and fp32.",
            "The configuration names a device or fp16, and the machine lacks it. Elsewhere this is a warning.",
            "Ask the queue for a GPU, or set the two keys.",
        ),
        Message(
            "logger.dump_path: runs of the sweep would share '…'; leave it out (logger.dump_path=null), and each run "
            "gets a folder of its own. hydra.sweep.dir=FOLDER says where these are.",
            "One folder holds one run.",
            "Leave `logger.dump_path` out.",
        ),
        Message(
            "resume: no unfinished run in '…'…; give a run's folder.",
            "All runs there are finished or stopped, or processes are running them.",
            "Give the folder of the run, and a larger `optim.epochs` if it is finished.",
        ),
        Message(
            "data.…: a data set (…) without a loader.",
            "The trainer needs batches, but got single samples.",
            "Wrap the data set in `stable_ssl.data.Loader(dataset, batch_size=…)`.",
        ),
        Message(
            "optim.scheduler: ….step() needs '…', but a run calls it after each optimizer step, when there is no such "
            "value.",
            "The schedule, such as `ReduceLROnPlateau`, follows a value that is known only after an evaluation.",
            "Take another schedule, or step this one yourself in `after_eval`: the message says how.",
        ),
        Message(
            "data.train has no length: set optim.max_steps to the mini-batches that make an epoch.",
            "A stream does not say where an epoch ends.",
            "Set `optim.max_steps`.",
        ),
    ],
    "A run ends early": [
        Message(
            "The loss of step … is ….",
            "The loss is not a number, or infinite. No checkpoint holds a value that is not finite.",
            "Begin a branch with a smaller rate, `optim.grad_max_norm`, or `optim.nonfinite=skip`.",
        ),
        Message(
            "A weight or running statistic is not finite at step …",
            "The last checkpoint was made before that step, and is good.",
            "Begin a branch with a smaller rate or `optim.grad_max_norm`.",
        ),
        Message(
            "data.…: … can't be read: …",
            "Files are damaged or missing, or a transform failed. The message names all such samples.",
            "Mend the files or put them back, and the run goes on. Or remove them, or leave them out by "
            "`unreadable: skip` of the `Loader`; the run goes on by a branch then.",
        ),
        Message(
            "… can't be read. Remove or replace them, or leave them out by on_error: skip of Images: …",
            "`Images` found files that are damaged, cut short or not images, before the run began. The lines above say "
            "which, and why.",
            "Mend or remove the files, or leave them out by `on_error: skip` of `Images`. A run that began with them "
            "goes on without them by a branch.",
        ),
        Message(
            "… has … levels, from … to …, instead of levels from 0 to 255.",
            "An image has more than 8 bits, or floats, and nothing says which of its levels are black and white.",
            "Give the data set `levels=(low, high)`; [images.md](images.md) has examples.",
        ),
        Message(
            "sample … is RGB, but … others are grey.",
            "The data set has grey images and colours, and the 32 images that decide were all grey.",
            "Give the data set `channels=3` or `channels=1`.",
        ),
        Message(
            "data.…: a worker process died or hung while batches… were read: …",
            "A worker process was killed, often because memory ran out, or ended by itself, or waits for ever. The "
            "message says which.",
            "Use fewer workers or smaller batches, or ask for more memory. With `num_workers=0`, an error of the data "
            "set's own code is shown.",
        ),
        Message(
            "… could not be written, as the errors above say. …",
            "The run did all its epochs, but its last checkpoint or its final weights did not fit on the disk. What "
            "was written before is whole. The rest of the message says what that is.",
            "Make room, and start it again. If the run has no checkpoint, copy the weights first that the message "
            "names: it would begin anew.",
        ),
        Message(
            "Memory ran out at step …: …. Lower ….",
            "The device or the machine has too little memory for the batch. The message has the figures.",
            "Use a smaller batch and as many more accumulated mini-batches, or `hardware.precision=bf16`: in a branch, "
            "or by starting the run again if it has no checkpoint yet.",
        ),
        Message(
            "Stopping … because of ….",
            "A signal or `hardware.time_limit` asked the run to stop. Its state is saved, unless an error beside this "
            "message says that it could not be.",
            "Start it again: it goes on from where it was.",
        ),
        Message(
            "Training was stopped at step …. …",
            "A hook raised `BreakAllEpochs`, or `logger.best.patience` ran out. The state is saved, and the final "
            "weights if `logger.save_final_model` is set.",
            "Nothing needs to be done. To train on, start the run again with a larger `optim.epochs`. If `patience` "
            "ran out, the next evaluation that is no better would end it again: begin a branch with more patience.",
        ),
    ],
    "A run goes on, with a warning": [
        Message(
            "The checkpoint of step … could not be written: …. …",
            "Its disk is full, for example. The message says which checkpoint the run would go on from, or that there "
            "is none, so that all that was trained would be lost.",
            "Make room on the disk of the run's folder. The next checkpoint is written as if nothing had happened.",
        ),
        Message(
            "No optimizer has …: only those of module and loss are trained.",
            "Trainable parameters are attributes of the trainer itself, so nothing trains them.",
            "Put the module into `module`, or train it by `side_optimizers()`.",
        ),
        Message(
            "optim.optimizer: it lacks …, so nothing trains them. …",
            "A script made the optimizer itself, of the parameters of some modules only.",
            "Give it the parameters of these modules too, or let it be a callable, such as `partial(AdamW, lr=1e-3)`. "
            "If they are not meant to be trained, name them in `optim.frozen`.",
        ),
        Message(
            "No optimizer of the run has …, so that only your own code trains them: …",
            "A hook thawed parameters that were frozen at the set-up, or put in a new module. They are not trained.",
            "Freeze them by `optim.groups.<pattern>.frozen_epochs` or in `before_fit_epoch`, or call "
            '`self.optim["optimizer"].add_param_group`. Make new modules in `prepare_modules`.',
        ),
        Message(
            "Hooks made or removed … after the set-up, so this run CAN'T BE RESUMED from its checkpoints: …",
            "A resumed run loads its checkpoint before these hooks run, so it has other values than the checkpoint.",
            "Stop the run soon. Make the modules, parameters or buffers in `prepare_modules(modules)`, and start anew.",
        ),
        Message(
            "data.train ended after … of … mini-batches in epoch ….",
            "An epoch of the stream has fewer mini-batches than `optim.max_steps` says, or than its length.",
            "If each epoch is so short, set `optim.max_steps` to that number, so that the schedule comes to its end.",
        ),
        Message(
            "The learning rate was 0 in every step of epoch …, in … of … groups of parameters: they were not trained.",
            "The schedule is shorter than the run, or a group has a rate of 0.",
            "If this is not meant, begin a branch with another `optim.scheduler`, or with `optim.epochs` as they were.",
        ),
        Message(
            "module.…: no gradient reaches it in the first step. Does compute_loss use it?",
            "The loss does not depend on this module, or only through a detached tensor.",
            "Use the module in `compute_loss`, or leave it out.",
        ),
        Message(
            "Going on with … processes instead of …: the samples come in the same order, but results may differ in the "
            "last bits, and what each process had of its own is lost.",
            "Sums over processes are added in another order.",
            "Nothing needs to be done. Use the same number of processes if the bits matter.",
        ),
        Message(
            "… Results may differ in the last bits.",
            "The software, the device or the number of threads is not that of the checkpoint.",
            "Nothing needs to be done. Restore what the message names if the bits matter.",
        ),
        Message(
            "This process was given … of the CPUs, so torch uses as many threads and not …; OMP_NUM_THREADS would "
            "set another number.",
            "More threads than CPUs would wait for each other.",
            "Nothing needs to be done. In Slurm, ask for more CPUs by `slurm.cpus` or `--cpus-per-task`.",
        ),
        Message(
            "hardware.precision is bf16, for which this CPU has no instructions: a step may take ten times as long as "
            "in fp32.",
            "The CPU computes bf16 in software. The recipes on photographs have bf16, for GPUs.",
            "Begin anew with `hardware.precision=fp32`.",
        ),
        Message(
            "numba can write neither beside the library nor in the home folder (…). It keeps what it compiles …, and "
            "compiles for some seconds where nothing is kept. NUMBA_CACHE_DIR=FOLDER names a folder that lasts.",
            "The package and the home folder are read-only or full.",
            "Set `NUMBA_CACHE_DIR` to a folder that can be written.",
        ),
        Message(
            "data.…: epochs … and … begin with equal batches: the stream gives the same order again.",
            "A stream does not know the epoch, so it repeats itself.",
            "Give its data set a method `set_epoch(epoch)`. It is called before each epoch; use it for the order.",
        ),
        Message(
            "data.…: these generators can't be seeded, so what they draw is not the same in each run: ….",
            "A transform has a random generator of its own.",
            "Let it draw from the default generators of Python, NumPy or torch.",
        ),
        Message(
            "data.…: skipping the first … batches; the same ones as before are not promised, since a … has no "
            "state_dict.",
            "A stream can't tell its place, so a resumed run reads and drops the batches that it had.",
            "Give the stream `state_dict` and `load_state_dict`.",
        ),
        Message(
            "No checkpoint of step …, since metrics.jsonl can't be written: …",
            "The disk is full, or the folder can't be written.",
            "Make room: the next checkpoint is tried as usual.",
        ),
        Message(
            "logger.best: this evaluation has no value '…'; it has ….",
            "No metric, monitor or hook logged the value that `logger.best.metric` names.",
            "Correct the name: it is `<set>/<name>`, as in `metrics.jsonl`.",
        ),
    ],
}


def table() -> list[str]:
    """Return the page as lines of Markdown: a section per group, with a table of messages, meanings and remedies."""
    lines = []
    for title, messages in MESSAGES.items():
        lines += [f"## {title}", "", "| message | what it means | what to do |", "|---|---|---|"]
        lines += [f"| `{message.text}` | {message.meaning} | {message.remedy} |" for message in messages]
        lines.append("")
    return lines[:-1]
