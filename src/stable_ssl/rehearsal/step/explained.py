"""An error of a run in one sentence: where it happened, what met there, and what to change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ...data.faults import is_out_of_memory
from ...exceptions import BreakEpoch, BreakStep, CheckpointError, ConfigError, DataError, NanError
from ...nodes import argument_names, is_node
from ...runtime.device import describe_batch
from ...runtime.status import outcome
from ..offline import needs_network
from .places import Place

_OWN = (CheckpointError, ConfigError, DataError, NanError)  # their messages are whole sentences
_WIDTHS = ("in_features", "dim", "in_dim", "input_dim")  # what arguments for the width of the input are called
_NO_GPU = "Found no NVIDIA driver|CUDA driver version is insufficient|not compiled with CUDA|No CUDA GPUs are available"
_CHANNELS = ("in_channels", "in_chans", "channels")


def explain(error: BaseException, place: Place, config: Any) -> list[str]:
    """Return one sentence or two for each problem that an error tells of.

    Parameters
    ----------
    error, place
        The error, and where it happened.
    config
        The trainer's configuration, for the keys that set what does not fit.
    """
    if isinstance(error, ConfigError):
        return error.problems
    message, caller = _first_line(error), place.method or place.key or "The run"
    if isinstance(error, _OWN):
        return [f"{place.key}: {message}" if place.key.startswith("logger.") else message]
    if isinstance(error, BreakStep | BreakEpoch):
        return [f"{outcome(error)[1]}{at(place)}"]
    if _needs_gpu(error, config):
        return [f"{caller}: it calls CUDA, so it can't be tried without a GPU.{at(place)}"]
    if needs_network(error):
        return [f"{caller}: it reaches another machine, which a check doesn't, so it can't be tried.{at(place)}"]
    for kind, sentence in _KINDS:
        if (match := re.search(kind, message)) and (text := sentence(match, place, config)):
            return [f"{text}{at(place)}"]
    if metric := _of_metric(place):
        return [metric if "predict()" in metric else f"{metric} {named(error)}"]
    where = place.key if not place.method or place.key.startswith("logger.") else place.method
    if place.is_sentence:
        where = place.key if place.key.startswith(("logger.", "module.")) else where if place.line else ""
        return [f"{where}: {message}{at(place)}" if where else message]
    inside = f" In {place.layer}" if place.key not in ("", where) else ""
    got = f", which got {place.got}." if inside and place.got else "." if inside else ""
    return [f"{where or 'The run'}: {named(error)}{inside}{got}{at(place)}"]


def is_known(error: BaseException, place: Place) -> bool:
    """Return whether an error is of a kind that has the same cause with any number of samples."""
    message = _first_line(error)
    is_of_numbers = re.search(r"at least|more than|fewer than", message)
    is_known = (
        bool(re.search(_NO_GPU, message))
        or any(re.search(kind, message) for kind, _ in _KINDS)
        or bool(_of_metric(place))
    )
    # A function of this package may be given too few by the user's code.
    return is_known or (place.is_sentence and not is_of_numbers and not place.line)


def is_of_check(error: BaseException, config: Any) -> bool:
    """Return whether an error is one of the check: it has no GPU or too little memory, or refuses a connection."""
    return needs_network(error) or is_out_of_memory(error) or _needs_gpu(error, config)


def _needs_gpu(error: BaseException, config: Any) -> bool:
    """Return whether code of a run that may use a GPU asked for CUDA, which this machine lacks."""
    hardware = config.get("hardware") if isinstance(config, Mapping) else None
    device = hardware.get("device") if isinstance(hardware, Mapping) else None
    return str(device) != "cpu" and bool(re.search(_NO_GPU, str(error)))


def _first_line(error: BaseException) -> str:
    # The text of a KeyError is in quotation marks.
    is_sentence = isinstance(error, KeyError) and error.args and " " in str(error.args[0])
    return (str(error.args[0] if is_sentence else error).splitlines() or [""])[0].split(" Hint: ")[0]


def named(error: BaseException) -> str:
    """Return the class and the first line of an error as a sentence."""
    return f"{type(error).__name__}: {_first_line(error)}".removesuffix(": ").removesuffix(".") + "."


def at(place: Place) -> str:
    """Return " At file.py:12.", the line of the user's code; "" if there is none."""
    return f" At {place.line}." if place.line else ""


# The kinds of error --------------------------------------------------------------------------------------------------


def _widths(match: re.Match, place: Place, config: Any) -> str:
    got, takes = int(match["got"]), int(match["takes"])
    if not isinstance(place.part, nn.Module) or not place.key.startswith("module."):
        return ""
    if isinstance(place.part, nn.Linear) and place.num_dimensions == 4:  # the width of the images is no width to set
        return _dimensions(match, place, config)
    what = "values per sample" if isinstance(place.part, nn.Linear) else "values"
    return _misfit(place, what, takes, got, _set_to(place, config, takes, got, _WIDTHS))


def _channels(match: re.Match, place: Place, config: Any) -> str:
    takes, got = int(match["takes"]), int(match["got"])
    if not place.key:
        return ""
    if place.evaluated and "train" in place.trainer.data:
        return (
            f"data.{place.evaluated}: its images have {got} channel{'s' * (got != 1)}, but those of data.train have "
            f"{takes}, as {place.layer} takes. Make them alike."
        )
    return _misfit(place, "channels", takes, got, _set_to(place, config, takes, got, _CHANNELS))


def _dimensions(match: re.Match, place: Place, config: Any) -> str:
    if not place.key:
        return ""
    source = _source(place)
    return (
        f"{place.layer} got {place.got or 'its input'}{source}, which has another number of dimensions than it takes. "
        "A head takes vectors (batch, dim), a convolution images (batch, channels, height, width): pool and flatten "
        "what comes before a head, and give a backbone images."
    )


def _kinds_of_numbers(match: re.Match, place: Place, config: Any) -> str:
    kind = match[1].replace("unsigned char", "uint8").lower()
    kind = {"byte": "uint8", "double": "float64", "long": "int64", "char": "int8", "int": "int32"}.get(kind, kind)
    where = place.layer if place.key else place.method or "a layer"
    advice = (
        "Give the Loader views, or convert the images to float32 in the data set's transform: image.float() / 255."
        if "int" in kind
        else "Have the data set give float32, for example by .float()."
    )
    return f"{where} takes float32, but gets {kind}{_source(place)}. {advice}"


def _list_of_views(match: re.Match, place: Place, config: Any) -> str:
    if not place.key.startswith("module."):
        return ""
    if not place.got.startswith("["):  # another list
        return ""
    return (
        f"{place.layer} takes one tensor, but gets a list: {place.got}. Does the data set, or data.train.views, "
        "give several views of each image? Give one, or take a trainer for several."
    )


def _small_images(match: re.Match, place: Place, config: Any) -> str:
    where = place.layer if place.key else "a layer"
    return (
        f"{where} gets {place.got or 'images'}, which are fewer pixels than it needs. Take larger images (size=…), or "
        "a backbone with fewer poolings and strides (low_resolution=true for residual networks)."
    )


def _labels(match: re.Match, place: Place, config: Any) -> str:
    scores, labels = _scores_and_labels(place)
    if scores is None or labels is None:
        return ""
    smallest, largest, width = int(labels.min()), int(labels.max()), scores.shape[1]
    if smallest < 0:
        return (
            f"{place.method or 'the loss'}: a label is {smallest}, which stands for no label. Leave these samples out, "
            "or give the loss ignore_index."
        )
    heads = [name for name, shape in place.outputs.items() if shape[-1:] == (width,) and name.count(".") == 1]
    head = heads[-1] if heads else ""
    node, path = _node_of(head, config)
    found = _paths_of(node, width, path) if node is not None else []
    advice = f"Set {found[0]} to {largest + 1} or more" if len(found) == 1 else f"Give it {largest + 1} or more"
    gives = (
        f"{width} score{'s' * (width != 1)}, for labels from 0 to {width - 1}. {advice}, or count the labels from 0."
    )
    if head:  # its key comes first, so that what the data say of it is not said again
        return f"{head}: the labels go up to {largest}, but it gives {gives}"
    return f"{place.method or 'the loss'}: the labels go up to {largest}, but the network gives {gives}"


def _types_of_labels(match: re.Match, place: Place, config: Any) -> str:
    _, labels = _scores_and_labels(place)
    if labels is None:
        return ""
    return (
        f"{place.method or 'the loss'}: the loss takes labels int64 (batch,), but they are {describe_batch(labels)}. "
        "Convert them in the data set, or give a loss for such labels."
    )


def _sizes(match: re.Match, place: Place, config: Any) -> str:
    if not place.key.startswith("module."):
        return ""
    return (
        f"{place.layer} got {place.got or 'its input'}, but was built for another size ({match[0]}). Set the size that "
        f"{place.module} is built for to that of the images, or the images' size to that of {place.module}."
    )


# The kinds of error by torch's words for them. A function that returns "" leaves an error to the general sentence.
_KINDS: list[tuple[str, Callable[[re.Match, Place, Any], str]]] = [
    (r"shapes cannot be multiplied \(\d+x(?P<got>\d+) and (?P<takes>\d+)x\d+\)", _widths),
    (r"running_mean should contain (?P<got>\d+) elements not (?P<takes>\d+)", _widths),
    (r"normalized_shape=\[(?P<takes>\d+)\], expected .* got input of size\[.*?(?P<got>\d+)\]", _widths),
    (r"to have (?P<takes>\d+) channels, but got (?P<got>\d+) channels", _channels),
    (
        r"expected \d\S*( or \d\S*)? input \(got \d\S* input\)|Expected .* input to conv\dd, but got input of",
        _dimensions,
    ),
    (r"Input type \((.+?)\) and (?:bias|weight) type", _kinds_of_numbers),
    (r"must have the same dtype, but got (\w+) and \w+", _kinds_of_numbers),
    (r"expected (?:m1 and m2|scalar type).* (?:but found|!=)[ :]*(?:\w+ != )?(\w+)", _kinds_of_numbers),
    (r"got \(list, |must be Tensor, not list|'list' object has no attribute", _list_of_views),
    (r"not implemented for '(Byte|Char|Int|Long|Short|Bool)'", _kinds_of_numbers),
    (r"Kernel size can't be greater than actual input size|Output size is too small", _small_images),
    (r"Target -?\d+ is out of bounds", _labels),
    (r"expected target dtype to be|Expected floating point type for target|target tensor expected", _types_of_labels),
    (r"Wrong image (?:height|width)!.*|Input (?:height|width) .*doesn't match model.*|Input image size .*", _sizes),
]


def _misfit(place: Place, what: str, takes: int, got: int, advice: str) -> str:
    what = what.replace("channels", "channel") if takes == 1 else what
    return f"{place.layer} takes {takes} {what}, but gets {got}{_source(place)}: {place.got}. {advice}"


def _source(place: Place) -> str:
    """Return " from module.…": the other module whose newest output has the shape that the part got."""
    own = place.module
    last = next((name for name in [*place.outputs][::-1] if name.count(".") == 1 and name != own), "")
    shape = str(place.outputs[last]) if last else ""
    return f" from {last}" if last and shape in place.got else ""


def _set_to(place: Place, config: Any, takes: int, got: int, names: tuple[str, ...]) -> str:
    """Return what to set so that a module takes `got`: the argument whose value is `takes`, if just one is."""
    node, path = _node_of(place.key, config)
    found = _paths_of(node, takes, path) if node is not None else []
    if len(found) == 1:
        return f"Set {found[0]} to {got}."
    arguments = argument_names(node) if node is not None else []
    if named := next((name for name in names if name in arguments), None):
        return f"Set {path}.{named} to {got}."
    if found:
        return f"Set the one of {' and '.join(found)} that is the input's to {got}."
    return f"Make {path or place.module} for {got}, or what comes before it give {takes}."


def _node_of(key: str, config: Any) -> tuple[Any, str]:
    """Return the innermost node of a configuration on the way to a key, and its own key. None: there is none."""
    value, path, found = config, "", (None, "")
    for part in key.split("."):
        part = "student" if part == "teacher" else part
        positional = value.get("_args_") if isinstance(value, Mapping) else None
        if isinstance(value, Mapping) and part in value:
            value, path = value[part], f"{path}.{part}" if path else part
        elif part.isdigit() and isinstance(positional, list) and int(part) < len(positional):
            value, path = positional[int(part)], f"{path}._args_[{part}]"
        else:
            break
        found = (value, path) if is_node(value) else found
    return found


def _paths_of(value: Any, wanted: int, path: str) -> list[str]:
    """Return the keys at which a node has a number. Of a list, the first place counts."""
    if isinstance(value, Mapping):
        items = ((f"{path}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        items = ((f"{path}[{place}]", item) for place, item in enumerate(value))
    else:
        return [path] if type(value) is int and value == wanted else []
    found = [one for key, item in items for one in _paths_of(item, wanted, key)]
    return found[:1] if isinstance(value, list | tuple) else found


def _scores_and_labels(place: Place) -> tuple[Tensor | None, Tensor | None]:
    """Return what torch's cross-entropy was called with."""
    for name, variables in place.frames:
        if name in ("cross_entropy", "nll_loss"):
            scores, labels = variables.get("input"), variables.get("target")
            if isinstance(scores, Tensor) and isinstance(labels, Tensor) and scores.ndim > 1:
                return scores, labels
    return None, None


def _of_metric(place: Place) -> str:
    """Return what is wrong between the predictions and a metric, if the error came from there."""
    for name, variables in place.frames:
        if name != "update" or "set_name" not in variables or "predictions" not in variables:
            continue
        predictions, labels, metric = (variables.get(key) for key in ("predictions", "labels", "metric"))
        key = f"logger.metric.{variables['set_name']}.{variables['name']}"
        got = f"predictions {describe_batch(predictions)} and labels {describe_batch(labels)}"
        classes = getattr(metric, "num_classes", None)
        width = predictions.shape[1] if isinstance(predictions, Tensor) and predictions.ndim == 2 else None
        if width is not None and isinstance(classes, int) and classes != width:
            return f"{key}: num_classes is {classes}, but predict() gives {width} scores. Make the two equal."
        largest = int(labels.max()) if isinstance(labels, Tensor) and labels.numel() else -1
        if isinstance(classes, int) and largest >= classes:
            return f"{key}: predict() gives {classes} scores, as num_classes says, but the labels go up to {largest}."
        return f"{key}: it can't take {got}."
    return ""
