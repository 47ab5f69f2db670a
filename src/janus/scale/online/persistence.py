"""When to follow a drift: at once, and later and later while following turns out to chase something that swings."""

from __future__ import annotations

MOST = 8  # windows in a row, at most; and so many quiet ones until it is quicker again


class Persistence:
    """How many windows in a row another placement has to pay before it is taken.

    One at first. Where, in the window after one was taken, the one before it would do better (`swung`: routing swings
    faster than it can be followed), twice as many from then on; after `MOST` quiet windows half as many again. So a
    drift that stays costs one window, and a swing costs little more than standing still.

    Example:
        >>> swings = Persistence()
        >>> [swings.due(wanted, swung=wanted) for wanted in (True, True, False, True, False, True, True)]
        [True, False, False, False, False, False, True]
    """

    def __init__(self) -> None:
        self.needed, self._row, self._quiet, self._taken = 1, 0, 0, False

    def due(self, wanted: bool, swung: bool) -> bool:
        """Is it to be taken now? To be asked once per window.

        Args:
            wanted: another placement would pay.
            swung: so would the one that was replaced last.
        """
        if not wanted:
            self._row, self._taken, self._quiet = 0, False, self._quiet + 1
            if self._quiet == MOST:
                self.needed, self._quiet = max(1, self.needed // 2), 0
            return False
        if self._taken and swung:
            self.needed = min(2 * self.needed, MOST)
        self._row, self._quiet = self._row + 1, 0
        self._taken = self._row >= self.needed
        self._row = 0 if self._taken else self._row
        return self._taken
