"""What a backend is: one object that says whether it can serve a call, and serves it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..problem import Problem


class Backend(ABC):
    """The kernels behind the operators.

    Every method gets a non-empty problem and tensors of these shapes, with any strides (0 included):
    x [B, H, N, C] in `problem.dtype`, weight [B, H, N] in `problem.accumulate_dtype` or None, bases [B, H, C, K]
    and logit_bias [B, H, K] in any floating dtype (logit_bias may be None). Results named y and grad_x have the
    dtype and memory order of x (`empty_like_order`); all others are dense in `problem.accumulate_dtype`.
    x of `em_forward` and `em_attend` is in float8_e4m3fn, and y in `problem.dtype`, only where `reads_float8` says so.
    """

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this backend can serve no call on this machine, or None if it can."""

    @abstractmethod
    def refuses(self, problem: Problem) -> str | None:
        """Why this backend cannot serve `problem`, or None if it can."""

    def reads_float8(self, problem: Problem) -> bool:
        """Whether the loop of `problem` takes x in float8_e4m3fn as it is; where not, it gets it widened."""
        return False

    @abstractmethod
    def em_forward(
        self, problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The loop: y, last bases [B, H, C, K], path M_0..M_{T-1} [T, B, H, C, K], mass and length [T, B, H, K].

        `length` is the L2 norm over C of the mean features, before the bases are scaled to length one.
        """

    def em_attend(self, problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """`em_forward` where no gradient is wanted: y and the last bases; bases may be [H, C, K] too."""
        y, last, *_ = self.em_forward(problem, x, bases.expand(problem.batch, *bases.shape[-3:]), weight)
        return y, last

    @abstractmethod
    def em_backward(
        self,
        problem: Problem,
        grad_y: Tensor,
        grad_bases: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        bases: Tensor,
        path: Tensor,
        mass: Tensor,
        length: Tensor,
        need_bases: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """grad_x, and the gradient of the initial bases [B, H, C, K] if `need_bases` (only when all
        iterations carry the gradient). `problem.grad_iters` is at least 1; the four tensors after `weight` are
        what `em_forward` returned, and `grad_bases` [B, H, C, K] is the gradient of its last bases."""

    @abstractmethod
    def em_step(
        self, problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None, logit_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One E-step and the undivided M-step: sums [B, H, C, K] and mass [B, H, K]."""

    @abstractmethod
    def em_step_backward(
        self,
        problem: Problem,
        grad_sums: Tensor,
        grad_mass: Tensor,
        x: Tensor,
        bases: Tensor,
        weight: Tensor | None,
        logit_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """grad_x, and the gradients of bases [B, H, C, K] and of the logit bias [B, H, K]."""

    @abstractmethod
    def em_reconstruct(
        self, problem: Problem, x: Tensor, logit_bases: Tensor, value_bases: Tensor, logit_bias: Tensor | None
    ) -> Tensor:
        """Features rebuilt from the value bases: y [B, H, N, Cv]."""

    @abstractmethod
    def em_reconstruct_backward(
        self,
        problem: Problem,
        grad_y: Tensor,
        x: Tensor,
        logit_bases: Tensor,
        value_bases: Tensor,
        logit_bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """grad_x, and the gradients of logit bases [B, H, C, K], value bases [B, H, Cv, K] and logit bias."""

    @abstractmethod
    def em_folded_forward(
        self, problem: Problem, x: Tensor, bases: Tensor, weight: Tensor | None, conv_weight: Tensor, conv_bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """`em_forward` of f = x conv_weight^T + conv_bias, which is never made; there is one head.

        Between the path and the mass it returns the sums x^T (weight * Z) of every iteration, [T, B, 1, C, K].
        conv_weight is [C, C] (out, in) in any floating dtype, conv_bias [C] in `problem.accumulate_dtype`, both
        contiguous.
        """

    @abstractmethod
    def em_folded_backward(
        self,
        problem: Problem,
        grad_y: Tensor,
        grad_bases: Tensor | None,
        x: Tensor,
        weight: Tensor | None,
        conv_weight: Tensor,
        conv_bias: Tensor,
        bases: Tensor,
        path: Tensor,
        sums: Tensor,
        mass: Tensor,
        length: Tensor,
        need_bases: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """grad_x, the gradients of conv_weight [C, C] and of conv_bias [C], and as in `em_backward` that of the initial
        bases; the five tensors after `conv_bias` are what `em_folded_forward` returned."""

    def em_unit(
        self,
        problem: Problem,
        x: Tensor,
        bases: Tensor,
        weight: Tensor | None,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The loop on f = x weight1^T + bias1, and around it y = relu(x + relu(rebuilt f) weight2^T + bias2).

        Returns y and the last bases [B, 1, C, K]. There is one head, and no gradient. The weights are [C, C] (out,
        in) in the dtype of x, the biases [C] in `problem.accumulate_dtype`, all four contiguous. Optional: a backend
        without it is not asked.
        """
        raise NotImplementedError
