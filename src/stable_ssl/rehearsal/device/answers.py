"""What code is told that asks for a value of a tensor which has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .lines import caller

_MOST_TRIES = 6
ENDLESS = 1000  # from so many questions of one line on, it gets the other answer


class Answers:
    """The answers to questions after values, by the line that asks.

    A truth is true, and a number is 1. A loop that ends by a value, such as `while error > 0.1`, would never end by
    that. So a line gets the other answer, false or 0, after 1000 questions.
    """

    def __init__(self) -> None:
        self._truths: dict[str, bool] = {}  # the newest is the last
        self._asked: Counter[str] = Counter()

    def truth(self) -> bool:
        """Return the truth of a tensor for the line that asks."""
        place = caller()
        self._truths[place] = answer = self._truths.pop(place, True)
        return answer and not self._is_endless(place)

    def number(self, dtype: torch.dtype) -> bool | int | float | complex:
        """Return the value of a tensor of one entry for the line that asks."""
        if dtype == torch.bool:
            return self.truth()
        one: int | float | complex = 1.0 if dtype.is_floating_point else 1j if dtype.is_complex else 1
        return 0 * one if self._is_endless(caller()) else one

    def _is_endless(self, place: str) -> bool:
        self._asked[place] += 1
        return self._asked[place] > ENDLESS

    def endless(self) -> str:
        """Return the line that has asked so often that it got the other answer; "" if there is none."""
        return next((place for place, count in self._asked.items() if count > ENDLESS), "")

    def change(self) -> bool:
        """Let the newest truth that was true be false from now on. Return whether there is one."""
        place = next((place for place, truth in reversed(self._truths.items()) if truth), None)
        if place is not None:
            self._truths[place] = False
        return place is not None

    def tried(self, do: Callable[[], Any], again: Callable[[], None]) -> Any:
        """Do something, and return its result.

        Code may raise because of an answer, such as a true `torch.isnan(loss).any()`. Then it is tried again with
        another answer.

        Parameters
        ----------
        do
            What is done.
        again
            Puts things back before each further try.

        Raises
        ------
        Exception
            The error of the last try.
        """
        for _ in range(_MOST_TRIES - 1):
            try:
                return do()
            except (Exception, SystemExit):
                again()
                if not self.change():
                    raise
        return do()
