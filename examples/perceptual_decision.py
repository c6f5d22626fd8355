"""A network of excitatory and inhibitory units that decides which way dots move.

Noisy evidence for left and for right comes in for over a second, the more different the stronger
the motion is (its coherence); after a cue the network has to say which was larger. The units leak
(tau = 100 ms, steps of 20 ms), are noisy, and obey Dale's law: what a unit sends either excites or
inhibits, as in Song, Yang & Wang, "Training Excitatory-Inhibitory Recurrent Neural Networks for
Cognitive Tasks", 2016. Only excitatory units are read out. As animals do, the trained network
decides better the stronger the motion is, and gathers evidence over time: the weaker the motion,
the slower.

    python examples/perceptual_decision.py [--updates 1000] [--out out/perceptual_decision]

trains in less than two minutes on two cores, with a bar that shows how far it is, and writes
decision.png.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import matplotlib as mpl
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fused_bptt import LeakyRNN
from fused_bptt.parametrizations import Dale, dale_signs

mpl.use("Agg")
import matplotlib.pyplot as plt

DT, TAU = 20, 100  # ms
FIXATION, MOTION, ANSWER = (ms // DT for ms in (200, 1200, 300))  # steps
STEPS = FIXATION + MOTION + ANSWER
UNITS, EXCITATORY, BATCH = 100, 80, 64
INPUT_NOISE, UNIT_NOISE = 0.6, 0.1
SILENT = 0.05  # a rate that counts for little, so that silent units have no preference
COHERENCES = torch.tensor([0.0, 3.2, 6.4, 12.8, 25.6, 51.2])  # percent


class Network(nn.Module):
    """Units in the voltage form; the rates of those that excite are read out."""

    def __init__(self) -> None:
        """Excitation and inhibition are balanced at first, and the spectral radius is one."""
        super().__init__()
        self.units = LeakyRNN(
            3,
            UNITS,
            form="voltage",
            nonlinearity="relu",
            dt=DT,
            tau=TAU,
            noise_std=UNIT_NOISE,
            scale_noise=True,
            learn_initial=True,
        )
        signs = dale_signs(UNITS, EXCITATORY / UNITS)
        weights = torch.distributions.Gamma(2.0, 1.0).sample((UNITS, UNITS)) * signs
        weights[:, EXCITATORY:] *= EXCITATORY / (UNITS - EXCITATORY)
        weights /= torch.linalg.eigvals(weights).abs().max()
        parametrize.register_parametrization(self.units, "weight_hh_l0", Dale(signs))
        self.units.weight_hh_l0 = weights
        self.choice = nn.Linear(EXCITATORY, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [T, B, 3] to the outputs left and right [T, B, 2], and all rates [T, B, units]."""
        _, _, rates = self.units(x, return_rates=True)
        return self.choice(rates[..., :EXCITATORY]), rates


def trials(motion: Tensor) -> Tensor:
    """Inputs [T, B, 3] for motion to the right in percent [B]: left, right, and the cue."""
    x = torch.zeros(STEPS, len(motion), 3)
    moving = slice(FIXATION, FIXATION + MOTION)
    strength = torch.stack([1 - motion / 100, 1 + motion / 100], dim=1) / 2
    x[moving, :, :2] = strength + INPUT_NOISE * torch.randn(MOTION, len(motion), 2)
    x[FIXATION + MOTION :, :, 2] = 1
    return x


def train(network: Network, updates: int) -> list[float]:
    """The share of right answers at each update."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    shares = []
    for _ in track(range(updates), description="training"):
        motion = COHERENCES[1:][torch.randint(len(COHERENCES) - 1, (BATCH,))]
        motion = motion * (2 * torch.randint(2, (BATCH,)) - 1)
        outputs, rates = network(trials(motion))
        answers = outputs[FIXATION + MOTION :]
        target = (motion > 0).long()
        loss = nn.functional.cross_entropy(answers.mean(0), target)
        loss = loss + 1e-2 * outputs[:FIXATION].square().mean() + 1e-3 * rates.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        slower.step()
        shares.append((answers.mean(0).argmax(1) == target).float().mean().item())
    return shares


@torch.no_grad()
def test(network: Network, count: int) -> dict[str, Tensor]:
    """Of every signed coherence: the share of answers "right"; mean outputs and rates over time."""
    motions = torch.cat([-COHERENCES[1:].flip(0), COHERENCES])
    found: dict[str, list[Tensor]] = {"right": [], "difference": [], "rates": []}
    for motion in motions:
        outputs, rates = network(trials(motion.expand(count)))
        difference = outputs[..., 1] - outputs[..., 0]
        chosen = difference[FIXATION + MOTION :].mean(0) > 0
        found["right"].append(chosen.float().mean())
        found["difference"].append(difference.mean(1))
        found["rates"].append(rates.mean(1))
    return {"motion": motions, **{name: torch.stack(values) for name, values in found.items()}}


def threshold(motion: Tensor, right: Tensor) -> tuple[float, float]:
    """Bias and scale, in percent of coherence, of the logistic curve that fits best."""
    bias, scale = torch.zeros(1, requires_grad=True), torch.full((1,), 10.0, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias, scale], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits((motion - bias) / scale, right)
        value.backward()
        return value

    optimizer.step(loss)
    return bias.item(), scale.item()


def draw(found: dict[str, Tensor], fit: tuple[float, float], count: int, path: Path) -> None:
    motion, right = found["motion"], found["right"]
    milliseconds = DT * (torch.arange(STEPS) - FIXATION + 1)
    figure, ((psychometric, outputs), (selective, units)) = plt.subplots(2, 2, figsize=(10.5, 8))
    colours = mpl.colormaps["viridis_r"](torch.linspace(0.1, 1, len(COHERENCES)).numpy())

    error = (right * (1 - right) / count).sqrt()
    at = torch.linspace(-60, 60, 200)
    psychometric.axhline(0.5, color="0.85", zorder=0)
    psychometric.axvline(0, color="0.85", zorder=0)
    curve = torch.sigmoid((at - fit[0]) / fit[1])
    psychometric.plot(at, curve, color="0.3", label="logistic fit")
    psychometric.errorbar(motion, right, error, fmt="o", color="C0", label=f"network, {count} each")
    psychometric.set(
        xlabel="motion to the right (% coherence)",
        ylabel='share of answers "right"',
        title="Stronger motion, better decisions",
        ylim=(-0.03, 1.03),
    )
    psychometric.legend(loc="lower right", frameon=False)

    def over_time(axes: plt.Axes, values: Tensor) -> None:
        axes.axvspan(0, MOTION * DT, color="0.94", zorder=0)
        axes.axvline(MOTION * DT, color="0.6", linestyle=":")
        for row, signed in zip(values, motion, strict=True):
            colour = colours[int((signed.abs() == COHERENCES).nonzero())]
            axes.plot(milliseconds, row, "-" if signed >= 0 else "--", color=colour, linewidth=1.6)
        axes.set(xlabel="time from the beginning of motion (ms)", xlim=(-FIXATION * DT, None))
        for name, middle in (("motion", MOTION / 2), ("answer", MOTION + ANSWER / 2)):
            above = axes.get_xaxis_transform()
            axes.text(DT * middle, 1.01, name, transform=above, ha="center", color="0.4")

    over_time(outputs, found["difference"])
    outputs.set_ylabel("output right less left (log odds)")
    outputs.set_title("Evidence is gathered over time", pad=18)
    keys = [("-", colour, f"{s:g} %") for colour, s in zip(colours, COHERENCES, strict=True)]
    keys += [("-", "0.3", "right"), ("--", "0.3", "left")]
    rows = [plt.Line2D([], [], linestyle=s, color=colour, label=name) for s, colour, name in keys]
    outputs.legend(handles=rows, loc="upper left", frameon=False, fontsize=8, ncols=2)

    moving = found["rates"][:, FIXATION + MOTION // 2 : FIXATION + MOTION].mean(1)
    preference = (moving[-1] - moving[0]) / (moving[-1] + moving[0] + SILENT)
    preferring = (moving[-1] - moving[0])[:EXCITATORY].topk(10).indices
    over_time(selective, found["rates"][..., preferring].mean(-1))
    selective.set_ylabel("rate, mean of 10 units (a.u.)")
    selective.set_title("Excitatory units that prefer motion to the right", pad=18)

    signs = torch.cat([torch.zeros(EXCITATORY), torch.ones(UNITS - EXCITATORY)])
    order = sorted(range(UNITS), key=lambda i: (signs[i].item(), -preference[i].item()))
    right_most, left_most = found["rates"][-1], found["rates"][0]
    contrast = ((right_most - left_most) / (right_most + left_most + SILENT))[:, order].T
    extent = (-FIXATION * DT, ANSWER * DT + MOTION * DT, UNITS, 0)
    image = units.imshow(
        contrast, aspect="auto", cmap="PuOr", vmin=-1, vmax=1, extent=extent, interpolation="none"
    )
    units.axhline(EXCITATORY, color="black", linewidth=1)
    for edge in (0, MOTION * DT):
        units.axvline(edge, color="0.3", linestyle=":", linewidth=1)
    units.set(
        xlabel="time from the beginning of motion (ms)",
        ylabel="unit, by preference",
        title=f"All units' preference, at {COHERENCES[-1]:g} % coherence",
        yticks=[EXCITATORY / 2, (EXCITATORY + UNITS) / 2],
        yticklabels=["excitatory", "inhibitory"],
    )
    units.tick_params(axis="y", rotation=90, length=0)
    for label in units.get_yticklabels():
        label.set_va("center")
    figure.colorbar(image, ax=units, label="(right - left) / (right + left)")
    for axes in (psychometric, outputs, selective):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=400, help="of each coherence, after training")
    parser.add_argument("--out", type=Path, default=Path("out/perceptual_decision"))
    given = parser.parse_args()
    torch.manual_seed(0)
    network, start = Network(), time.perf_counter()
    shares = train(network, given.updates)
    window = max(1, min(20, given.updates // 3))
    first, last = (sum(part) / window for part in (shares[:window], shares[-window:]))
    print(f"right answers: first {first:.2f}, last {last:.2f}; {time.perf_counter() - start:.0f} s")
    weights = network.units.weight_hh_l0
    assert bool((weights[:, :EXCITATORY] >= 0).all() and (weights[:, EXCITATORY:] <= 0).all())
    found = test(network, given.trials)
    bias, scale = fit = threshold(found["motion"], found["right"])
    at_75 = abs(scale) * math.log(3)
    print(f"75 % right at {at_75:.1f} % coherence; bias {bias:.1f} %")
    given.out.mkdir(parents=True, exist_ok=True)
    draw(found, fit, given.trials, given.out / "decision.png")
    print(f"written: {given.out / 'decision.png'}")


if __name__ == "__main__":
    main()
