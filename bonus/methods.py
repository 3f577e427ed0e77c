"""The exploration bonuses by name. `bonus.kind` takes one of these names, or the import path of a class of your own."""

from collections.abc import Callable, Mapping

from bonus.base import Bonus, load_bonus
from bonus.config import BonusConfig
from bonus.contract import try_out
from bonus.elliptical_bonus import EllipticalBonus

BONUSES: Mapping[str, Callable[[BonusConfig], Bonus]] = {"elliptical": EllipticalBonus}
"""Each known name with what makes the bonus. `bonus.config.KINDS` says what it needs, and loads without torch."""


def bonus_of(config: BonusConfig) -> Bonus:
    """Return the bonus that `config.kind` names. Raises ExtensionError."""
    known = BONUSES.get(config.kind)
    return known(config) if known is not None else load_bonus(config.kind, config.options)


def require_methods(config: BonusConfig) -> None:
    """Raise ExtensionError, one line that names the key, unless the bonus of `config` can be used. A class of your own
    scores a made-up step (`bonus.contract.try_out`)."""
    if config.enabled:
        bonus = bonus_of(config)
        if config.kind not in BONUSES:
            try_out(bonus, kind=config.kind, dim=config.dim)
