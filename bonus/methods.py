"""The exploration bonuses by name. `bonus.kind` and a term of `bonus.terms` take one of these names, or the import path
of a class of your own."""

from collections.abc import Callable, Mapping

from bonus.base import Bonus, load_bonus
from bonus.coin_flip import CoinFlipBonus
from bonus.config import BonusConfig
from bonus.contract import try_out
from bonus.copies import CopiesBonus
from bonus.cosine import CosineBonus
from bonus.elliptical_bonus import EllipticalBonus
from bonus.kinds import BonusTerm
from bonus.logdet import LogdetBonus
from bonus.outcome_batch import OutcomeBatchBonus
from bonus.outcome_ucb import OutcomeUcbBonus
from bonus.random_bonus import RandomBonus
from bonus.rnd import RndBonus
from bonus.several import SeveralBonuses, WeightedBonus
from bonus.surprise import SurpriseBonus

BONUSES: Mapping[str, Callable[[BonusConfig], Bonus]] = {
    "elliptical": EllipticalBonus,
    "logdet": LogdetBonus,
    "cosine": CosineBonus,
    "coin_flip": CoinFlipBonus,
    "rnd": RndBonus,
    "outcome_ucb": OutcomeUcbBonus,
    "outcome_batch": OutcomeBatchBonus,
    "surprise": SurpriseBonus,
    "copies": CopiesBonus,
    "random": RandomBonus,
}
"""Each known name with what makes the bonus. `bonus.kinds.KINDS` says what it needs, and loads without torch."""


def bonus_of(config: BonusConfig) -> Bonus:
    """Return the bonus that `config.kind` names, or the sum that `config.terms` describes. Raises ExtensionError."""
    if not config.terms:
        return _bonus_of_part(config.parts[0], config)
    terms = (WeightedBonus(name=part.name, kind=part.kind, weight=part.weight, bonus=_bonus_of_part(part, config)) for part in config.terms)
    return SeveralBonuses(tuple(terms))


def _bonus_of_part(part: BonusTerm, config: BonusConfig) -> Bonus:
    known = BONUSES.get(part.kind)
    return known(config) if known is not None else load_bonus(part.kind, part.options)


def require_methods(config: BonusConfig) -> None:
    """Raise ExtensionError, one line that names the key, unless the bonus of `config` can be used. A class of your own
    scores a made-up step (`bonus.contract.try_out`)."""
    if config.enabled:
        for part in config.parts:
            bonus = _bonus_of_part(part, config)
            if part.kind not in BONUSES:
                try_out(bonus, kind=part.kind, dim=config.dim)
