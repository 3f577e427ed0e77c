"""What a response adds to the volume that its group spans, as a bonus."""

from bonus.elliptical import logdet_gain
from bonus.elliptical_bonus import EllipticalBonus
from bonus.kinds import KINDS


class LogdetBonus(EllipticalBonus):
    """The elliptical bonus on another scale: what response i adds to log det(I + K/lam) of its group.

        b_i = log det(I + K/lam) - log det(I + K_{-i}/lam) = -log(1 - leverage_i)

    DQO (arXiv:2509.04784) rewards a group with the determinant of its kernel matrix over embeddings. Its abstract and
    secondary pages say so; the exact form of its loss was not verified. Ours are the share of each single response in
    that volume (the group's own value would cancel in its mean), the ridge, the centering by group, and frozen hidden
    states in place of an embedding model. With memory="prompt" or "run" Sigma also holds what is remembered. The order
    of responses is that of the leverage, and large leverages are farther apart. All else, with metrics and details, is
    as in `bonus.elliptical_bonus`."""

    needs = KINDS["logdet"]
    estimator = staticmethod(logdet_gain)
