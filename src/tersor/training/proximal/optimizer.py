"""An optimizer around another one: proximal steps, ADMM and masks, for any network and any loop."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tersor.errors import CheckpointError, RecipeError
from tersor.numerics import QTensor, QuantSpec
from tersor.training.proximal import Proximal
from tersor.training.proximal.admm import Admm, AdmmState, Residual
from tersor.training.proximal.masks import check_mask, check_zero, clear
from tersor.training.proximal.parameters import (
    check_inner,
    check_saved,
    name_in,
    naming,
    parameters_of,
    rate_of,
    trained_name,
)


class ProximalOptimizer(Optimizer):
    """Any optimizer of torch, with proximal steps, ADMM and masks for some of its parameters.

    ``step`` runs the inner optimizer with ADMM's pull behind it or in its gradients, applies the proximal operators
    with the strength times the learning rate, and makes masked weights zero. Parameters without a gradient stay, and
    gradients are left as they were. Groups and state are those of the inner optimizer, so that learning-rate
    schedulers, ``GradScaler`` and accelerate work as with any other; ``state_dict`` also holds masks, targets and
    duals, and resumes bit for bit. In data-parallel training each process makes the same steps from the same
    gradients. Errors and residuals use the names of ``named_parameters()``, if the inner optimizer got these.

    Args:
        inner: SGD, Adam or another one that steps once for each gradient.
        extragradient: 0 is off. Otherwise two calls of ``step`` are one step, as Leng et al. (arXiv 1707.09870) take
            the W-step: the first moves W to W' = W − extragradient·lr·gradient(W), the second returns to W and steps
            with gradient(W').

    Attributes:
        masks: those of ``mask``, by parameter; read them only.
        steps: of the inner optimizer.

    Raises:
        RecipeError: the inner optimizer calls its closure more than once (LBFGS), or maximizes.

    >>> layer = torch.nn.Linear(3, 2)
    >>> optimizer = ProximalOptimizer(torch.optim.SGD(layer.named_parameters(), lr=0.1))
    >>> optimizer.admm(layer.weight, Admm("ternary"))
    >>> optimizer.mask(layer.bias, torch.tensor([True, False]))
    >>> for _ in range(3):
    ...     layer(torch.ones(4, 3)).square().mean().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> optimizer.dual_step()["weight"].step
    3
    >>> optimizer.project()["weight"].spec.format.name, layer.bias[1].item()
    ('ternary', 0.0)
    """

    def __init__(self, inner: Optimizer, extragradient: float = 0.0):
        check_inner(inner)
        if not 0 <= extragradient < float("inf"):
            raise RecipeError(f"extragradient is {extragradient:g}: it must be finite and not negative")
        self.inner, self.extragradient, self.steps = inner, extragradient, 0
        self.masks: dict[Tensor, Tensor] = {}
        self._proximal: dict[Tensor, tuple[Proximal, float]] = {}
        self._admm: dict[Tensor, AdmmState] = {}
        self._origins: dict[Tensor, Tensor] = {}
        super().__init__(inner.param_groups, inner.defaults)
        self._share()

    def prox(self, parameter: Tensor, proximal: Proximal, strength: float = 1.0) -> None:
        """Apply ``proximal`` to the parameter behind each step, with ``strength`` times the learning rate.

        Raises:
            TaskError: the parameter is not the optimizer's, or is frozen.
            RecipeError: it already has a proximal operator.
        """
        name = trained_name(self.param_groups, parameter)
        if parameter in self._proximal:
            raise RecipeError(f"{name} already has the proximal operator {self._proximal[parameter][0]}")
        self._proximal[parameter] = proximal, strength

    def admm(self, parameter: Tensor, options: Admm, spec: QuantSpec | None = None) -> None:
        """Train the parameter towards a quantized set, from its present value and on its present device.

        Args:
            parameter: one of the optimizer's.
            options: the set and its penalty.
            spec: format, granularity and scale dtype instead of the set's own.

        Raises:
            TaskError: the parameter is not the optimizer's, or is frozen.
            RecipeError: it already has a set, ``spec`` cannot hold the set, or it is masked and the set has no zero.
            NumericsError: the parameter has NaN or infinity.
        """
        name = trained_name(self.param_groups, parameter)
        if parameter in self._admm:
            raise RecipeError(f"{name} already has a set: {self._admm[parameter].projection}")
        with naming(self.param_groups, parameter):
            state = AdmmState(parameter, options, spec, rate_of(self.param_groups, parameter))
            if parameter in self.masks:
                check_zero(state.qtensor.spec)
        self._admm[parameter] = state

    @torch.no_grad()
    def mask(self, parameter: Tensor, keep: Tensor | None) -> None:
        """Make weights zero and keep them so, through momentum, weight decay and the state of Adam.

        Another mask replaces the first; weights that it keeps again grow from zero.

        Args:
            parameter: one of the optimizer's.
            keep: bool, in the shape of the parameter, False for zeros; None removes the mask.

        Raises:
            TaskError: the parameter is not the optimizer's, or the mask does not fit it.
            RecipeError: ADMM trains it towards a set without zero.
        """
        trained_name(self.param_groups, parameter)
        self._settle()
        if keep is None:
            self.masks.pop(parameter, None)
            return
        with naming(self.param_groups, parameter):
            check_mask(keep, parameter.shape)
            if parameter in self._admm:
                check_zero(self._admm[parameter].qtensor.spec)
        gone = ~keep.to(parameter.device)
        if parameter in self._admm:
            self._admm[parameter].clear(gone)
        self.masks[parameter] = ~gone
        clear(parameter, gone, self.inner.state.get(parameter, {}))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; with ``extragradient``, the first or second half of one.

        Args:
            closure: computes gradients and returns the loss; called once.

        Returns:
            What ``closure`` returned, or None.

        Raises:
            NumericsError: a parameter became NaN or infinite.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        plain = self._augment()
        try:
            if self.extragradient and not self._origins:
                self._predict()
                return loss
            self._settle()
            self.inner.step()
        finally:
            for parameter, gradient in plain.items():
                parameter.grad = gradient
        self.steps += 1
        self._constrain()
        for parameter, state in self._admm.items():
            if state.options.every and self.steps % state.options.every == 0:
                self._update(parameter)
        return loss

    @torch.no_grad()
    def dual_step(self) -> dict[str, Residual]:
        """ADMM's G-step and dual step for all its parameters; their residuals by name.

        Raises:
            NumericsError: a parameter became NaN or infinite.
        """
        self._settle()
        return self._by_name({parameter: self._update(parameter) for parameter in self._admm})

    @torch.no_grad()
    def project(self) -> dict[str, QTensor]:
        """Set every parameter with ADMM to its target G; the codes by name.

        If the optimizer has stepped since the last update of G, ``dual_step`` comes first.
        """
        self._settle()
        if any(not state.history or state.history[-1].step < self.steps for state in self._admm.values()):
            self.dual_step()
        for parameter, state in self._admm.items():
            parameter.copy_(state.target)
        return self._by_name({parameter: state.qtensor for parameter, state in self._admm.items()})

    @property
    def residuals(self) -> dict[str, list[Residual]]:
        """The residuals of every update so far, by name of the parameter."""
        return self._by_name({parameter: list(state.history) for parameter, state in self._admm.items()})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of every optimizer."""
        if not any(param_group is group for group in self.inner.param_groups):
            self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimizer, and ``proximal``: masks, targets, duals, and what they belong to."""
        parts: dict[int, dict[str, Any]] = {}
        for number, p in enumerate(parameters_of(self.param_groups)):
            held = {key: of[p] for key, of in (("keep", self.masks), ("origin", self._origins)) if p in of}
            admm = {"admm": self._admm[p].state_dict()} if p in self._admm else {}
            parts[number] = {"kind": self._kind(p), **held, **admm}
        return {**self.inner.state_dict(), "proximal": {"steps": self.steps, "parameters": parts}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of an optimizer with the same parameters, proximal operators and sets; masks are replaced.

        Raises:
            CheckpointError: it is the state of another optimizer, with the parameter at which they differ.
        """
        state_dict = dict(state_dict)
        if "proximal" not in state_dict:
            raise CheckpointError("the state is of a plain optimizer: load it before wrapping the optimizer")
        own = state_dict.pop("proximal")
        parts = {p: own["parameters"].get(n, {}) for n, p in enumerate(parameters_of(self.param_groups))}
        for parameter, part in parts.items():
            with naming(self.param_groups, parameter):
                check_saved(part, self._kind(parameter), parameter.shape)
        self.inner.load_state_dict(state_dict)
        self._share()
        self.steps = own["steps"]
        self.masks, self._origins = (
            {p: part[key].to(p.device, copy=True) for p, part in parts.items() if key in part}
            for key in ("keep", "origin")
        )
        for parameter, state in self._admm.items():
            state.load_state_dict(parts[parameter]["admm"], parameter.device)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("defaults", "inner", "extragradient", "steps", "masks", "_proximal", "_admm", "_origins")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def _by_name(self, found: dict[Tensor, Any]) -> dict[str, Any]:
        return {name_in(self.param_groups, parameter): value for parameter, value in found.items()}

    def _kind(self, parameter: Tensor) -> str:
        """What a parameter is trained towards, as text."""
        found = [str(held[parameter]) for held in (self._proximal, self._admm) if parameter in held]
        return " and ".join(found)

    def _augment(self) -> dict[Tensor, Tensor]:
        """Set the gradients of the augmented loss, zero for masked weights; returns those before."""
        plain = {p: p.grad for p in {**self._admm, **self.masks} if p.grad is not None}
        for parameter, gradient in plain.items():
            if parameter in self._admm:
                gradient = self._admm[parameter].augmented(gradient, parameter)
            if parameter in self.masks:
                gradient = gradient.masked_fill(~self.masks[parameter], 0)
            parameter.grad = gradient
        return plain

    def _predict(self) -> None:
        """Keep the weights, and move them against their gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._origins[parameter] = parameter.clone()
                    parameter.sub_(parameter.grad * (self.extragradient * float(group["lr"])))

    def _settle(self) -> None:
        """Return from a prediction to the weights that were kept."""
        for parameter, origin in self._origins.items():
            parameter.copy_(origin)
        self._origins = {}

    def _constrain(self) -> None:
        """Apply the proximal operators, then the masks."""
        for group in self.param_groups:
            lr = float(group["lr"])
            for parameter in group["params"]:
                stepped = parameter.grad is not None
                if stepped and parameter in self._admm:
                    parameter.copy_(self._admm[parameter].pulled(parameter, lr))
                if stepped and parameter in self._proximal:
                    proximal, strength = self._proximal[parameter]
                    with naming(self.param_groups, parameter):
                        parameter.copy_(proximal(parameter, strength * lr))
                if parameter in self.masks:
                    parameter.masked_fill_(~self.masks[parameter], 0)

    def _update(self, parameter: Tensor) -> Residual:
        with naming(self.param_groups, parameter):
            return self._admm[parameter].update(parameter, self.steps)
