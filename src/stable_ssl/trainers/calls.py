"""How a predictive trainer calls its networks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

log = logging.getLogger("stable_ssl")

_METHODS_OF = {"context_encoder": "forward", "target_encoder": "forward_target", "predictor": "forward_predictor"}


class PredictiveCalls:
    """How a `JointEmbeddingPredictiveTrainer` calls its networks: as today or as in early 2025, which is decided once.

    In early 2025, an encoder got `(images, params)` and the predictor
    `(context, target, context_params, target_params)`. A network is called like this if it can't be called as today. So
    is an encoder whose second parameter has `param` or `transform` in its name, and a predictor of four parameters if
    the second one has `target` in its name. So are `forward`, `forward_target` and `forward_predictor` of a subclass
    that defines them with as many parameters.

    Parameters
    ----------
    trainer
        The trainer, with its modules built.
    base
        The class whose methods count as not defined by a subclass.
    """

    def __init__(self, trainer: Any, base: type):
        self._early: list[str] = []
        own = {
            module: getattr(trainer, method)
            for module, method in _METHODS_OF.items()
            if getattr(type(trainer), method) is not getattr(base, method)
        }
        if "context_encoder" in own and not _takes(own["context_encoder"], 2):
            del own["context_encoder"]  # today, `forward` of one argument is what the evaluation uses
        modules = {name: own.get(name, trainer.module[name]) for name in _METHODS_OF}
        self.context = self._encoder("context_encoder", modules, own)
        self.target = self._encoder("target_encoder", modules, own)
        self.predict = self._predictor(modules["predictor"], "predictor" in own)
        if self._early:
            log.info(
                "Called as in early 2025, by their signatures: %s. An encoder gets (images, params), the predictor "
                "(context, target, context_params, target_params).",
                ", ".join(self._early),
            )

    def _encoder(self, name: str, modules: Mapping[str, Any], own: Mapping[str, Any]) -> Callable:
        encode = modules[name]
        if _takes(encode, 2) if name in own else _needs(encode, 2) or _names(encode, 1, "param", "transform"):
            self._early.append(name)
            return encode  # type: ignore[no-any-return]
        return lambda images, params: encode(images)

    def _predictor(self, predict: Any, is_own: bool) -> Callable:
        if (
            _takes(predict, 4)
            if is_own
            else _needs(predict, 4) or (_takes(predict, 4) and _names(predict, 1, "target"))
        ):
            self._early.append("predictor")
            return predict  # type: ignore[no-any-return]
        return lambda context, target, *params: predict(context, *params)


def _positional(function: Any) -> tuple[list[inspect.Parameter], bool]:
    """Return the positional parameters of a network or function, and whether it takes any number of them."""
    signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    parameters = signature.parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return named, any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _takes(function: Any, count: int) -> bool:
    """Return whether a number of positional arguments can be given."""
    named, takes_any = _positional(function)
    return takes_any or len(named) >= count


def _needs(function: Any, count: int) -> bool:
    """Return whether this number of positional arguments must be given, or more."""
    return sum(parameter.default is parameter.empty for parameter in _positional(function)[0]) >= count


def _names(function: Any, place: int, *words: str) -> bool:
    """Return whether the name of the parameter at a place has one of the words in it."""
    names = [parameter.name for parameter in _positional(function)[0]]
    return len(names) > place and any(word in names[place] for word in words)
