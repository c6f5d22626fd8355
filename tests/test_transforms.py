"""Transforms of torch.func and forward mode, against a loop over time in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from taped import taped_rnn
from tolerance import Named, assert_close, assert_exact, assert_no_worse
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import fused_bptt

Function = Callable[..., tuple[Tensor, Tensor]]

# At the first step and inside, two in a row, and a row without.
RESET = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
STATE = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 4)

OPTIONS: dict[str, dict[str, Any]] = {
    "tanh": {},
    "relu": {"nonlinearity": "relu"},
    "bidirectional": {"bidirectional": True},
    "stacked": {"num_layers": 2, "bidirectional": True},
    "packed": {"batch_sizes": (3, 3, 2, 1)},
    "packed-bidirectional": {"batch_sizes": (3, 2, 2, 1), "bidirectional": True},
    "reset": {"reset": RESET, "reset_state": STATE[:1]},
    "reset-bidirectional": {"reset": RESET, "reset_state": STATE, "bidirectional": True},
    "reset-packed": {"reset": RESET.flatten()[2:10], "batch_sizes": (3, 2, 2, 1)},
    "window": {"bptt_window": 2, "reset": RESET, "bidirectional": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
B, I, H = 3, 2, 4  # noqa: E741


def fused_rnn(
    data: Tensor, hx: Tensor, weights: Sequence[Tensor], batch_sizes: Any = None, **options: Any
) -> tuple[Tensor, Tensor]:
    if batch_sizes is None:
        return fused_bptt.rnn(data, hx, weights, **options)
    packed = PackedSequence(data, torch.tensor(batch_sizes))
    output, h_n = fused_bptt.rnn(packed, hx, weights, **options)
    return output.data, h_n


def functions(options: dict[str, Any]) -> tuple[Function, Function]:
    """Ours and the loop, of (data, hx, *weights)."""

    def of(rnn: Callable[..., tuple[Tensor, Tensor]]) -> Function:
        return lambda data, hx, *weights: rnn(data, hx, weights, **options)

    return of(fused_rnn), of(taped_rnn)


def arguments(options: dict[str, Any], *lead: int, seed: int = 0) -> list[Tensor]:
    """Random (data, hx, *weights), each with `lead` dimensions in front."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.6 * torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    directions = 2 if options.get("bidirectional") else 1
    layers = options.get("num_layers", 1)
    rows = (sum(options["batch_sizes"]),) if "batch_sizes" in options else (4, B)
    found = [random(*rows, I), random(layers * directions, B, H)]
    for layer in range(layers):
        for _ in range(directions):
            width = I if layer == 0 else directions * H
            found += [random(H, width), random(H, H), random(H), random(H)]
    return found


def named(values: Any) -> Named:
    """The tensors of a nested structure, numbered."""
    leaves, _ = torch.utils._pytree.tree_flatten(values)
    return {str(index): leaf.detach() for index, leaf in enumerate(leaves)}


def assert_same(transformed: Callable[[Function], Any], options: dict[str, Any]) -> None:
    ours, loop = functions(options)
    assert_close(named(transformed(ours)), named(transformed(loop)))


def weighted(f: Function) -> Callable[..., Tensor]:
    """A loss that depends on all of both results, and not linearly."""

    def loss(*args: Tensor) -> Tensor:
        output, h_n = f(*args)
        return (output.sin() * output).sum() + (h_n**2 * h_n.cos()).sum()

    return loss


# ------------------------------------------------------------------------------- reverse mode


@every_option
def test_third_order(options: dict[str, Any]) -> None:
    args = arguments(options)
    directions = arguments(options, seed=1)

    def third(f: Function) -> Any:
        leaves = [value.requires_grad_() for value in args]
        value = weighted(f)(*leaves)
        for _ in range(2):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        return torch.autograd.grad(value, leaves)

    assert_same(third, options)


@every_option
def test_hessian_vector_product(options: dict[str, Any]) -> None:
    """Reverse over reverse and forward over reverse, as users write them."""
    args, directions = arguments(options), tuple(arguments(options, seed=1))
    numbers = tuple(range(len(args)))

    def products(f: Function) -> Any:
        gradient = grad(weighted(f), argnums=numbers)
        _, pull = vjp(gradient, *args)
        _, pushed = jvp(gradient, tuple(args), directions)
        return pull(directions), pushed

    assert_same(products, options)


# ------------------------------------------------------------------------------- forward mode


@every_option
def test_jvp(options: dict[str, Any]) -> None:
    args, tangents = arguments(options), arguments(options, seed=1)
    assert_same(lambda f: jvp(f, tuple(args), tuple(tangents)), options)


@pytest.mark.parametrize("index", range(6))
@every_option
def test_jvp_of_one_argument(options: dict[str, Any], index: int) -> None:
    args, tangents = arguments(options), arguments(options, seed=1)

    def transformed(f: Function) -> Any:
        def of_one(value: Tensor) -> Any:
            return f(*args[:index], value, *args[index + 1 :])

        return jvp(of_one, (args[index],), (tangents[index],))

    assert_same(transformed, options)


@every_option
def test_dual_numbers(options: dict[str, Any]) -> None:
    args, tangents = arguments(options), arguments(options, seed=1)

    def transformed(f: Function) -> Any:
        with forward_ad.dual_level(), torch.no_grad():
            results = f(*(forward_ad.make_dual(a, t) for a, t in zip(args, tangents, strict=True)))
            return [forward_ad.unpack_dual(result).tangent for result in results]

    assert_same(transformed, options)


@every_option
def test_second_order_forwards(options: dict[str, Any]) -> None:
    """Forward over forward: the tangents of the linear recurrence."""
    args, tangents = tuple(arguments(options)), tuple(arguments(options, seed=1))

    def transformed(f: Function) -> Any:
        def first(*values: Tensor) -> Any:
            return jvp(f, values, tangents)

        return jvp(first, args, tuple(arguments(options, seed=2)))

    assert_same(transformed, options)


@pytest.mark.parametrize("index", [0, 1, 2, 3], ids=["x", "hx", "weight_ih", "weight_hh"])
@every_option
def test_jacobians_and_hessians(options: dict[str, Any], index: int) -> None:
    args = arguments(options)

    def transformed(f: Function) -> Any:
        loss = weighted(f)
        return [
            jacfwd(f, argnums=index)(*args),
            jacrev(f, argnums=index)(*args),
            hessian(loss, argnums=index)(*args),
            jacrev(jacfwd(loss, argnums=index), argnums=3)(*args),
        ]

    assert_same(transformed, options)


def test_a_vectorised_jacobian() -> None:
    """vmap of a backward pass that was recorded without it."""
    args = arguments({})

    def transformed(f: Function) -> Any:
        return torch.autograd.functional.jacobian(f, tuple(args), vectorize=True)

    assert_same(transformed, {})


# ---------------------------------------------------------------------------------------- vmap

N = 3


@every_option
def test_vmap_over_inputs(options: dict[str, Any]) -> None:
    _, _, *weights = arguments(options)
    data, hx, *_ = arguments(options, N)
    dims = (0, 0, *[None] * len(weights))
    assert_same(lambda f: vmap(f, in_dims=dims)(data, hx, *weights), options)


@every_option
def test_vmap_over_weights(options: dict[str, Any]) -> None:
    """An ensemble on the same input."""
    data, hx, *_ = arguments(options)
    _, _, *weights = arguments(options, N)
    dims = (None, None, *[0] * len(weights))
    assert_same(lambda f: vmap(f, in_dims=dims)(data, hx, *weights), options)


@every_option
def test_vmap_over_everything(options: dict[str, Any]) -> None:
    args = arguments(options, N)
    assert_same(lambda f: vmap(f)(*args), options)


@pytest.mark.parametrize("index", range(6))
@every_option
def test_vmap_over_one_argument(options: dict[str, Any], index: int) -> None:
    args = arguments(options)
    args[index] = arguments(options, N)[index]
    dims = tuple(0 if i == index else None for i in range(len(args)))
    assert_same(lambda f: vmap(f, in_dims=dims)(*args), options)


@pytest.mark.parametrize(("of_data", "of_hx", "of_weight", "to"), [(1, 2, 1, 1), (-1, 0, -1, 2)])
@every_option
def test_vmap_anywhere(
    options: dict[str, Any], of_data: int, of_hx: int, of_weight: int, to: int
) -> None:
    """The dimension may lie anywhere in each argument and in the results."""
    data, hx, *weights = arguments(options, N)
    data, hx = data.movedim(0, of_data), hx.movedim(0, of_hx)
    weights = [value.movedim(0, of_weight) for value in weights]
    dims = (of_data, of_hx, *[of_weight] * len(weights))
    assert_same(lambda f: vmap(f, in_dims=dims, out_dims=to)(data, hx, *weights), options)


@every_option
def test_vmap_nested(options: dict[str, Any]) -> None:
    """An ensemble, each member on several inputs; and the other way round."""
    _, _, *weights = arguments(options, 2)
    data, hx, *_ = arguments(options, N)
    inputs, members = (0, 0, *[None] * len(weights)), (None, None, *[0] * len(weights))
    assert_same(
        lambda f: (
            vmap(vmap(f, in_dims=inputs), in_dims=members)(data, hx, *weights),
            vmap(vmap(f, in_dims=members), in_dims=inputs)(data, hx, *weights),
        ),
        options,
    )


@every_option
def test_gradients_of_each_sample(options: dict[str, Any]) -> None:
    _, _, *weights = arguments(options)
    data, hx, *_ = arguments(options, N)
    dims = (0, 0, *[None] * len(weights))
    numbers = tuple(range(2 + len(weights)))
    assert_same(
        lambda f: vmap(grad(weighted(f), argnums=numbers), in_dims=dims)(data, hx, *weights),
        options,
    )


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (3,), (4,), (0, 3), (2, 5)], ids=str)
@every_option
def test_some_gradients_of_each_sample(options: dict[str, Any], asked: tuple[int, ...]) -> None:
    """And where h_n alone, or the output alone, is what the loss depends on."""
    _, hx, *weights = arguments(options)
    data = arguments(options, N)[0]
    dims = (0, *[None] * (1 + len(weights)))

    def transformed(f: Function) -> Any:
        return [
            vmap(grad(lambda *args, part=part: f(*args)[part].sin().sum(), argnums=asked), dims)(
                data, hx, *weights
            )
            for part in (0, 1)
        ]

    assert_same(transformed, options)


@every_option
def test_autograd_around_gradients_of_each_sample(options: dict[str, Any]) -> None:
    """As a penalty on the norm of each sample's gradient is written; and twice."""
    _, _, *weights = arguments(options)
    data, hx, *_ = arguments(options, N)
    dims = (0, 0, *[None] * len(weights))
    numbers = tuple(range(2 + len(weights)))

    def transformed(f: Function) -> Any:
        leaves = [value.clone().requires_grad_() for value in (data, hx, *weights)]
        found = vmap(grad(weighted(f), argnums=numbers), in_dims=dims)(*leaves)
        penalty = sum(value.square().sum() for value in found)
        second = torch.autograd.grad(penalty, leaves, create_graph=True)
        return second, torch.autograd.grad(sum(value.sum() for value in second), leaves)

    assert_same(transformed, options)


@every_option
def test_autograd_around_a_gradient(options: dict[str, Any]) -> None:
    """torch.func inside, backward outside, of second and third order."""
    args = arguments(options)

    def transformed(f: Function) -> Any:
        leaves = [value.clone().requires_grad_() for value in args]
        found = grad(weighted(f), argnums=tuple(range(len(args))))(*leaves)
        penalty = sum(value.square().sum() for value in found)
        second = torch.autograd.grad(penalty, leaves, create_graph=True)
        return second, torch.autograd.grad(sum(value.sum() for value in second), leaves)

    assert_same(transformed, options)


@every_option
def test_gradients_of_each_sample_twice(options: dict[str, Any]) -> None:
    """vmap(grad(grad)), and vmap of a pull-back that was made outside of it."""
    _, _, *weights = arguments(options)
    data, hx, *_ = arguments(options, N)
    dims = (0, 0, *[None] * len(weights))
    cotangents = arguments(options, N, seed=1)[0].repeat_interleave(H // I, -1)
    if options.get("bidirectional"):
        cotangents = torch.cat([cotangents, cotangents.cos()], -1)

    def transformed(f: Function) -> Any:
        def norm(*args: Tensor) -> Tensor:
            return grad(weighted(f), argnums=3)(*args).square().sum()

        _, pull = vjp(lambda data: f(data, hx[0], *weights)[0], data[0])
        return (
            vmap(grad(norm, argnums=(0, 3)), in_dims=dims)(data, hx, *weights),
            vmap(pull)(cotangents),
            jvp(pull, (cotangents[0],), (cotangents[1],)),
        )

    assert_same(transformed, options)


@every_option
def test_gradients_of_each_sample_of_each_member(options: dict[str, Any]) -> None:
    """Samples inside members, samples inside samples, and members inside samples."""
    _, _, *shared = arguments(options)
    _, _, *weights = arguments(options, 2)
    data, hx, *_ = arguments(options, N)
    numbers = tuple(range(2 + len(weights)))
    inputs, members = (0, 0, *[None] * len(weights)), (None, None, *[0] * len(weights))

    def transformed(f: Function) -> Any:
        gradients = grad(weighted(f), argnums=numbers)
        twice = (data.expand(2, *data.shape), torch.stack([hx, hx.cos()]))
        return (
            vmap(vmap(gradients, inputs), members)(data, hx, *weights),
            vmap(vmap(gradients, members), inputs)(data, hx, *weights),
            vmap(vmap(gradients, inputs), inputs)(*twice, *shared),
        )

    assert_same(transformed, options)


def test_gradients_of_each_sample_as_opacus_takes_them() -> None:
    """From hooks that keep a layer's input and its gradient, by vmap(grad) of one sample."""

    class Output(fused_bptt.RNN):
        """For its hooks, which know of one result alone."""

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    torch.manual_seed(0)
    layer = Output(I, H, num_layers=2, bidirectional=True, batch_first=True, dtype=torch.float64)
    model = nn.Sequential(layer, nn.Linear(2 * H, 1, dtype=torch.float64))
    kept: dict[str, Tensor] = {}

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        kept["input"] = inputs[0].detach()

    def keep_gradient(_: nn.Module, __: Any, outputs: tuple[Tensor, ...]) -> None:
        kept["gradient"] = outputs[0].detach()

    hooks = (
        layer.register_forward_hook(keep_input),
        layer.register_full_backward_hook(keep_gradient),
    )
    x = torch.randn(N, 5, I, dtype=torch.float64, requires_grad=True)
    model(x).square().sum().backward()
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def of_sample(weights: Named, x: Tensor, g: Tensor) -> Tensor:
        return (functional_call(layer, weights, (x.unsqueeze(0),)) * g.unsqueeze(0)).sum()

    for hook in hooks:
        hook.remove()
    found = vmap(grad(of_sample), in_dims=(None, 0, 0))(weights, kept["input"], kept["gradient"])
    for sample in range(N):
        model.zero_grad()
        model(x[sample : sample + 1]).square().sum().backward()
        alone = {name: value.grad for name, value in layer.named_parameters()}
        assert_close({name: value[sample] for name, value in found.items()}, alone)


def test_lengths_of_each_member_are_refused() -> None:
    """And what to do instead is said."""
    _, hx, *weights = arguments({})

    def of(data: Tensor, batch_sizes: Tensor) -> Tensor:
        return fused_bptt.rnn(PackedSequence(data, batch_sizes), hx, weights)[1]

    data = torch.randn(2, 5, I, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"batch_sizes: expected .* vmap.*padded"):
        vmap(of)(data, torch.tensor([[3, 2], [3, 2]]))


@pytest.mark.parametrize("batch_sizes", [None, (2, 1)])
def test_gradients_of_each_sample_in_sixteen_bits(batch_sizes: Any) -> None:
    """Where no operator has a whole layer: the same as one sample after the other gives."""
    options = {} if batch_sizes is None else {"batch_sizes": batch_sizes}
    args = [value.bfloat16() for value in arguments({}, N)]
    if batch_sizes is not None:
        args[0], args[1] = args[0][:, 0], args[1][:, :, :2]
    data, hx, *weights = args[:2] + [value[0] for value in args[2:]]
    ours, loop = functions(options)
    gradients, exact = (grad(weighted(f), argnums=(2, 3, 4)) for f in (ours, loop))
    found = vmap(gradients, in_dims=(0, 0, *[None] * 4))(data, hx, *weights)
    for sample in range(N):
        point = (data[sample], hx[sample], *weights)
        assert_no_worse(
            named([value[sample] for value in found]),
            named(gradients(*point)),
            named(exact(*(value.double() for value in point))),
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("T", "batch"), [(0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_of_each_sample_of_nothing(
    bidirectional: bool, T: int, batch: int, dtype: torch.dtype
) -> None:
    module = fused_bptt.RNN(I, H, bidirectional=bidirectional, dtype=dtype)
    weights = [value.detach() for value in module.parameters()]

    def total(weights: list[Tensor], x: Tensor) -> Tensor:
        output, h_n = fused_bptt.rnn(x, None, weights, bidirectional=bidirectional)
        return output.sum() + h_n.sum()

    x = torch.randn(N, T, batch, I, dtype=dtype)
    found = vmap(grad(total), in_dims=(None, 0))(weights, x)
    zeros = [value.new_zeros(N, *value.shape) for value in weights]
    assert_exact(named(found), named(zeros))


@every_option
def test_gradients_of_each_member(options: dict[str, Any]) -> None:
    data, hx, *_ = arguments(options)
    _, _, *weights = arguments(options, N)
    dims = (None, None, *[0] * len(weights))
    numbers = tuple(range(2 + len(weights)))
    assert_same(
        lambda f: vmap(grad(weighted(f), argnums=numbers), in_dims=dims)(data, hx, *weights),
        options,
    )


@every_option
def test_gradients_through_vmap(options: dict[str, Any]) -> None:
    """grad outside, vmap inside."""
    args = arguments(options, N)
    numbers = tuple(range(len(args)))
    assert_same(lambda f: grad(weighted(vmap(f)), argnums=numbers)(*args), options)


@every_option
def test_tangents_of_each_sample(options: dict[str, Any]) -> None:
    args, tangents = arguments(options, N), arguments(options, N, seed=1)
    assert_same(lambda f: vmap(lambda a, t: jvp(f, a, t))(tuple(args), tuple(tangents)), options)


class Walks(TorchDispatchMode):
    """Counts the walks over time, and the products that are not batched over time."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        self.count += func.namespace == "fused_bptt"
        return func(*args, **(kwargs or {}))


def test_as_many_kernels_at_any_length() -> None:
    """No order of differentiation and no transform makes a loop over time or over the batch."""

    def counts(T: int, size: int) -> list[tuple[int, int]]:
        ours, _ = functions({})
        found = []
        _, hx, *weights = arguments({})
        data = torch.randn(T, B, I, dtype=torch.float64)
        many = data.expand(size, T, B, I)
        leaf = weights[1].clone().requires_grad_()

        def of_weight(weight: Tensor) -> Tensor:
            return weighted(ours)(data, hx, weights[0], weight, *weights[2:])

        def order(times: int) -> None:
            value = of_weight(leaf)
            for _ in range(times - 1):
                (first,) = torch.autograd.grad(value, leaf, create_graph=True)
                value = first.square().sum()
            torch.autograd.grad(value, leaf)

        inputs, members = (0, *[None] * 5), (None, None, *[0] * 4)
        stacked = [value.expand(size, *value.shape) for value in weights]
        per_sample = vmap(grad(weighted(ours), argnums=2), in_dims=inputs)
        of_members = vmap(grad(weighted(ours), argnums=2), in_dims=members)
        for work in (
            lambda: order(2),
            lambda: order(3),
            lambda: jvp(of_weight, (weights[1],), (weights[1],)),
            lambda: per_sample(many, hx, *weights),
            lambda: vmap(ours, inputs)(many, hx, *weights),
            lambda: vmap(ours, members)(data, hx, *stacked),
            lambda: vmap(vmap(ours, inputs), members)(many, hx, *stacked),
            lambda: vmap(vmap(ours, members), inputs)(many, hx, *stacked),
            lambda: of_members(data, hx, *stacked),
            lambda: jvp(grad(of_weight), (weights[1],), (weights[1],)),
            lambda: jacfwd(of_weight)(weights[1]),
            lambda: hessian(of_weight)(weights[1]),
        ):
            with Walks() as walks:
                work()
            found.append((walks.count, walks.calls))
        return found

    few, many = counts(3, 2), counts(50, 40)
    assert few == many
    assert [walks for walks, _ in few] == [4, 8, 2, 2, 1, 1, 1, 1, 2, 4, 2, 4]
