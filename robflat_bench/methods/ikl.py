r"""IKL:  L(w) = mean_i [ \ell_CE(f(x_i), y_i) + \beta/2 Var_{\omega_i}(z_i - z_i') + \alpha CE(p_T(x_i), p_T(x_i')) ],

    x_i' = argmax_{||x' - x_i||_inf <= \rho eps} KL( p(x_i) || p(x') )

with clean and adversarial logits z, z', p_T = softmax(z / T), and Var_\omega(d) = sum_k \omega_k (d_k - sum_j \omega_j
d_j)^2. The class weights \omega_i of an image are \bar p^\gamma, scaled to sum 1, where \bar p is the mean of p_T over
last epoch's images of its label (uniform in the first epoch). \rho grows from 0 to 1 over the first `ramp` of training.

Cui et al.: Decoupled Kullback-Leibler divergence loss. NeurIPS 2024.

This is version 2 of the released code. Its pairwise term needs no K x K memory:

    1/4 sum_jk \omega_j \omega_k ((z_j - z_k) - (z'_j - z'_k))^2 = 1/2 Var_\omega(z - z')

The gradient flows through both logits there; in the last term the clean prediction is a constant. Clean and adversarial
images are two forward passes, and each updates BN statistics.

Differences from the released code: \bar p averages the predictions that the attack starts from (in the recipe's BN mode
for attacks, at w), which are computed anyway, instead of those of the training forward pass. A label without images in
an epoch keeps its weights (there: NaN). \rho grows with every update instead of every epoch, and the step of the attack
is the recipe's throughout (there it is half the radius, with five steps). For \gamma other than 1, weights are scaled
image by image, not over the batch. The published runs add AWP from epoch 10 of 200:
`ikl+awp(gamma=0.005, warmup=0.05)`.
"""

from __future__ import annotations

from pydantic import Field

from robflat_bench.core import Batch, InnerAttack, Method, MethodInfo, Params, Passes, Training, lazy_imports
from robflat_bench.core.works import cite

with lazy_imports():
    import torch
    from torch import Tensor, nn

    from robflat_bench.attacks.engine import divergence_from
    from robflat_bench.methods.losses import soft_cross_entropy


class IKLParams(Params):
    alpha: float = Field(
        default=4.0, ge=0, description="Weight of the cross-entropy between predictions. Default: the released code's."
    )
    beta: float = Field(
        default=20.0, ge=0, description="Weight of the squared logit differences. Default: the released code's."
    )
    gamma: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="Power of the class weights: 0 makes them equal. Default: the released code's.",
    )
    temperature: float = Field(
        default=4.0,
        ge=0.01,
        description="Divides the logits of the predictions in the loss (T). Default: the released code's.",
    )
    ramp: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Fraction of training over which the attack's radius grows from 0 to the recipe's; 0: it is the "
        "recipe's throughout. Default: the released code's.",
    )


INFO = MethodInfo(
    name="ikl",
    summary="TRADES with the divergence taken apart: weighted logit differences, and soft cross-entropy",
    factory=f"{__name__}:IKL",
    params=IKLParams,
    citation=cite("cui2024decoupled"),
    example={"ramp": 0},
    attack=Passes("T + 2", "T"),
    loss=Passes("2", "2"),
    random_start=True,
    sharded="it remembers the mean prediction of each class",
)


class IKL(Method):
    """`weights` [K,K] holds last epoch's mean prediction of each label, `sums` [K,K] the sum of this epoch's so far."""

    params: IKLParams
    saved = ("weights", "sums", "epoch")

    def setup(self, training: Training) -> None:
        classes = training.shape.classes
        self.weights = next(training.model.parameters()).new_full((classes, classes), 1 / classes, dtype=torch.float64)
        self.sums = torch.zeros_like(self.weights)
        self.epoch = torch.tensor(0)

    def attack(self, model: nn.Module, batch: Batch, inner: InnerAttack) -> Tensor:
        clean = inner.predict(model, batch.x)
        self._remember(batch, clean)
        grown = min(1.0, batch.moment.progress / self.params.ramp) if self.params.ramp else 1.0
        return inner.within(grown * inner.epsilon)(model, batch.x, divergence_from(clean))

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor) -> Tensor:
        own, temperature = self.params, self.params.temperature
        clean, adversarial = (model(x).to(batch.target) for x in (batch.x, x_adv))  # differences of bfloat16 are coarse
        weights = self.weights[batch.y].pow(own.gamma).to(clean)
        squares = weighted_variance(clean - adversarial, weights) / 2
        soft = soft_cross_entropy(adversarial / temperature, (clean.detach() / temperature).softmax(1))
        return soft_cross_entropy(clean, batch.target) + own.beta * squares + own.alpha * soft

    def _remember(self, batch: Batch, clean: Tensor) -> None:
        """Add the batch's predictions to those of its epoch; the first batch of an epoch closes the one before."""
        if batch.moment.epoch != int(self.epoch):
            seen = self.sums.sum(1, keepdim=True)
            self.weights = torch.where(seen > 0, self.sums / seen, self.weights)
            self.sums, self.epoch = torch.zeros_like(self.sums), torch.tensor(batch.moment.epoch)
        labels = nn.functional.one_hot(batch.y, len(self.sums)).to(self.sums)
        self.sums = self.sums + labels.T @ (clean.to(self.sums) / self.params.temperature).softmax(1)


def weighted_variance(values: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k (v_k - sum_j w_j v_j)^2 of each row, [B], with the weights scaled to sum 1.

    Parameters
    ----------
    values: float [B,K].
    weights: float [B,K], at least 0; no row is zero.
    """
    weights = weights / weights.sum(1, keepdim=True)
    centred = values - (weights * values).sum(1, keepdim=True)
    return (weights * centred.square()).sum(1)
