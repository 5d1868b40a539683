"""The loop behind a folded convolution made of `em_step` and `em_reconstruct`, for backends without kernels of its own.

One E-step more than the loop needs in forward; in backward three products more, and grad_x is the sum of T + 1 results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Backend
from .eager import arithmetic


class ComposedFolding(Backend):
    """A `Backend` with the two methods for a folded convolution made of its others."""

    def em_folded_forward(self, problem, x, bases, weight, conv_weight, conv_bias):
        dtype = problem.accumulate_dtype
        conv_weight, parts = conv_weight.to(dtype), problem._replace(biased=True)
        path = [bases.to(dtype).contiguous()]
        saved: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(problem.num_iters):
            logits = conv_weight.mT @ path[-1], problem.scale * (conv_bias @ path[-1])
            sums, mass = self.em_step(parts, x, logits[0], weight, logits[1])
            length, m = torch.empty_like(mass), torch.empty_like(sums)
            convolved = conv_weight @ sums + conv_bias.unsqueeze(-1) * mass.unsqueeze(-2)
            arithmetic.normalize(problem, *(tensor.squeeze(1) for tensor in (convolved, mass, length, m)))
            path.append(m)
            saved.append((sums, mass, length))
        y = self.em_reconstruct(parts._replace(weighted=False), x, logits[0], path[-1], logits[1])
        return y, path.pop(), torch.stack(path), *map(torch.stack, zip(*saved, strict=True))

    def em_folded_backward(
        self, problem, grad_y, grad_bases, x, weight, conv_weight, conv_bias,
        bases, path, sums, mass, length, need_bases,
    ):  # fmt: skip
        conv_weight, parts = conv_weight.to(problem.accumulate_dtype), problem._replace(biased=True)
        grad_conv_weight, grad_conv_bias = torch.zeros_like(conv_weight), torch.zeros_like(conv_bias)

        def convolution_gets(grad: Tensor, sums: Tensor, mass: Tensor) -> None:
            grad_conv_weight.add_((grad @ sums.mT).sum((0, 1)))
            grad_conv_bias.add_((grad @ mass.unsqueeze(-1)).sum((0, 1, 3)))

        def gradient_of(m: Tensor, grad_logits: tuple[Tensor, Tensor]) -> Tensor:
            grad_logit_bases, grad_logit_bias = grad_logits
            grad_bias = problem.scale * grad_logit_bias
            convolution_gets(m, grad_logit_bases, grad_bias)
            return conv_weight @ grad_logit_bases + conv_bias.unsqueeze(-1) * grad_bias.unsqueeze(-2)

        logit_bases, logit_bias = conv_weight.mT @ path, problem.scale * (conv_bias @ path)
        grad_x, of_bases, grad_m, of_bias = self.em_reconstruct_backward(
            parts._replace(weighted=False), grad_y, x, logit_bases[-1], bases, logit_bias[-1]
        )
        grad_x = grad_x.to(problem.accumulate_dtype)
        grad_m = grad_m if grad_bases is None else grad_m + grad_bases
        of_path = gradient_of(path[-1], (of_bases, of_bias))
        for t in range(problem.num_iters - 1, problem.num_iters - problem.grad_iters - 1, -1):
            m = bases if t + 1 == problem.num_iters else path[t + 1]
            flat = (tensor.squeeze(1) for tensor in (grad_m, m, mass[t], length[t]))
            grad_sums, grad_mass = (g.unsqueeze(1) for g in arithmetic.normalize_backward(problem, *flat))
            convolution_gets(grad_sums, sums[t], mass[t])
            more, of_bases, of_bias = self.em_step_backward(
                parts, conv_weight.mT @ grad_sums, grad_mass + conv_bias @ grad_sums, x, logit_bases[t], weight,
                logit_bias[t],
            )  # fmt: skip
            grad_x += more
            grad_m = gradient_of(path[t], (of_bases, of_bias))
            if t + 1 == problem.num_iters:
                grad_m = grad_m + of_path
        return grad_x.to(x.dtype), grad_conv_weight, grad_conv_bias, grad_m if need_bases else None
