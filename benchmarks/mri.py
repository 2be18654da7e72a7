"""MRI: an ADS step against a step of plain posterior sampling, scoring against its direct form, and what costs what."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import Tensor

from apps.mri.ads import ADS, Sampling
from apps.mri.board import Acquisition
from apps.mri.entropy import entropy_scores
from benchmarks import mri_files
from benchmarks.clock import spread
from benchmarks.mri_peers import COMPILED, PEERS, Peer, Run, missing
from benchmarks.turns import milliseconds, ratio
from core.diffusion.guided import GuidedSampler, sample_posterior
from core.diffusion.unet import NetworkPrior, ResidualUNet
from simulators.mri.operators import KSpaceLines
from simulators.mri.scanner import Scanner


@dataclass(frozen=True)
class Setting:
    """One subject, whose ``lines`` include the central one that is held from the start."""

    size: int = 64
    particles: int = 8
    steps: int = 10
    lines: int = 8
    widths: tuple[int, ...] = (16, 32, 64)
    depth: int = 1
    device: str = "cpu"

    def __str__(self) -> str:
        return (
            f"{self.size} x {self.size}, {self.particles} particles, {self.steps} steps, {self.lines} of {self.size} "
            f"lines, U-Net {'-'.join(map(str, self.widths))} of depth {self.depth}, {self.device}"
        )


# The paper's network, images, particles, budget, and the steps of its demonstration (its benchmark takes 10 000).
PAPER = Setting(128, 16, 1000, 32, (32, 64, 96, 128), 2, "cuda")


def untrained(setting: Setting) -> NetworkPrior:
    """The network; training would not change what it costs."""
    torch.manual_seed(0)
    network = ResidualUNet(2, setting.widths, setting.depth)
    torch.nn.init.normal_(network.head.weight, std=0.02)
    return NetworkPrior(network, (2, setting.size, setting.size)).eval().to(setting.device)


class Idle(ResidualUNet):
    """A network that costs nothing: it takes half of what it sees for noise."""

    def forward(self, x: Tensor, variance: Tensor) -> Tensor:
        """Half of ``x``."""
        return 0.5 * x


class Subject:
    """A subject, and the runs with a prior."""

    def __init__(self, setting: Setting, prior: NetworkPrior) -> None:
        self.setting, self.prior = setting, prior
        shape = (2, setting.size, setting.size)
        self.operator = KSpaceLines(shape)
        self.target = torch.randn(1, *shape).to(setting.device)
        self.initial = (torch.arange(setting.size) == self.operator.center)[None].to(setting.device)

    def generators(self) -> list[torch.Generator]:
        """The subject's randomness from its start."""
        return [torch.Generator(self.setting.device).manual_seed(0)]

    def ads(self) -> Acquisition:
        """A run of ADS."""
        s = self.setting
        # Particles without a trained prior lie far apart; a wide belief keeps the scores of the lines distinct.
        ads = ADS(self.prior, self.operator, Sampling(steps=s.steps, particles=s.particles, sigma=1e3))
        return ads.run(Scanner(self.operator, self.target), self.initial, s.lines, self.generators())

    def dps(self, found: Acquisition) -> Tensor:
        """Posterior sampling with the samples that ADS ``found``, all of them from the start."""
        sampler = GuidedSampler(self.prior, self.operator, self.setting.steps)
        return sample_posterior(sampler, found.samples, found.mask, self.setting.particles, self.generators())

    def scoring(self) -> list[float]:
        """Milliseconds of scoring the particles' samples once, several times."""
        generator = self.generators()[0]
        shape = (1, self.setting.particles, *self.prior.shape)
        y = self.operator.forward(torch.randn(shape, generator=generator, device=generator.device))
        return milliseconds({"": lambda: entropy_scores(y, 1.0)}, 5, calls=20, device=self.setting.device)[""]

    def memory(self) -> float:
        """MiB of a step: the peak on a GPU, on a CPU what is kept for the gradient through the network."""
        sampler = GuidedSampler(self.prior, self.operator, self.setting.steps)
        generators = self.generators()
        particles = sampler.start(self.setting.particles, generators)
        y = self.operator.forward(self.target)
        if self.setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            sampler.step(0, particles, y, self.initial, generators)
            return torch.cuda.max_memory_allocated() / 2**20
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            sampler.step(0, particles, y, self.initial, generators)
        return sum(kept.values()) / 2**20


def main() -> None:
    """Print times and ratios; where there is a GPU, those of the paper's setting too."""
    against_peers(Setting(), PEERS, repeats=15)
    scoring("cpu")
    mri_files.main()
    cost(Setting(), {"particles": (4, 8, 16, 32), "lines": (1, 8, 16, 32), "size": (32, 64, 128)})
    if torch.cuda.is_available():
        against_peers(PAPER, PEERS | COMPILED, repeats=3)
        scoring("cuda")
        cost(replace(PAPER, steps=20), {"particles": (8, 16, 32, 64), "lines": (1, 8, 16, 32), "size": (64, 128, 256)})


def against_peers(setting: Setting, peers: Mapping[str, Peer], repeats: int) -> None:
    """A step, which is a whole run divided by its steps; with the network, and without, where the samplers differ."""
    absent = {name: reason for name, peer in peers.items() if (reason := missing(peer.module))}
    here = {name: peer for name, peer in peers.items() if name not in absent}
    subject = Subject(setting, untrained(setting))
    idle = Subject(setting, NetworkPrior(Idle(2, (1,)), subject.prior.shape).to(setting.device))
    steps = _steps(setting, _runs(subject, here), repeats)
    rest = {name: statistics.median(times) for name, times in _steps(setting, _runs(idle, here), repeats).items()}
    print(f"  ms a step: {setting}")
    print(f"    ADS                  {spread(steps['ADS'])}; without the network {rest['ADS']:.3g}")
    for name, limit in ({"bare DPS": 1.05} | {name: peer.limit for name, peer in peers.items()}).items():
        if name in absent:
            print(f"    {name:<20} not importable here ({absent[name]})")
            continue
        label = f"{name} {version(peers[name].package)}" if name in peers else name
        compared = f"ADS {ratio(steps['ADS'], steps[name])} (target at most {limit})"
        print(f"    {label:<20} {spread(steps[name])}; without the network {rest[name]:.3g}; {compared}")
    scores, bare = subject.scoring(), statistics.median(steps["bare DPS"])
    target = " (target at most 5 %)" if setting.device == "cuda" else ""
    print(f"    one scoring          {spread(scores)} = {statistics.median(scores) / bare:.2%} of a bare step{target}")
    print(
        f"    all that ADS adds    {rest['ADS'] - rest['bare DPS']:.3g} = {(rest['ADS'] - rest['bare DPS']) / bare:.2%}"
    )


def _runs(subject: Subject, peers: Mapping[str, Peer]) -> dict[str, Run]:
    found, s = subject.ads(), subject.setting
    same = (subject.prior, found.samples[0], found.mask[0], s.steps, s.particles)
    ours: dict[str, Run] = {"ADS": subject.ads, "bare DPS": lambda: subject.dps(found)}
    return ours | {name: peer.build(*same) for name, peer in peers.items()}


def _steps(setting: Setting, works: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    runs = milliseconds(works, repeats, device=setting.device)
    return {name: [took / setting.steps for took in times] for name, times in runs.items()}


def scoring(device: str) -> None:
    """128 lines of 128 samples and 16 particles, whose samples are large beside what they disagree on."""
    generator = torch.Generator(device).manual_seed(0)
    common, own = (torch.randn(1, p, 128, 256, generator=generator, device=device) for p in (1, 16))
    y = 20 * common + 0.01 * own
    error = float((entropy_scores(y, 1.0) - direct_scores(y.double(), 1.0)).abs().max())
    works: dict[str, Run] = {"Gram": lambda: entropy_scores(y, 1.0), "direct": lambda: direct_scores(y, 1.0)}
    took = milliseconds(works, 7, calls=5, device=device)
    print(f"  ms a scoring of 128 lines, 128 x 128, 16 particles, {device}")
    print(f"    all pairs            {spread(took['direct'])}")
    print(f"    Gram matrices        {spread(took['Gram'])}, {ratio(took['direct'], took['Gram'])} faster (target 15)")
    print(f"    largest difference to all pairs in float64: {error:.1e} nat (target 1e-6)")


def direct_scores(y: Tensor, sigma: float) -> Tensor:
    """The upper bound of the entropy (S, A) from the differences (S, P, P, A, R) of all pairs of particles."""
    distances = (y[:, :, None] - y[:, None]).square().sum(-1)
    noise_entropy = 0.5 * y.shape[-1] * math.log(2 * math.pi * math.e * sigma**2)
    return noise_entropy + math.log(y.shape[1]) - (-distances / (2 * sigma**2)).logsumexp(2).mean(1)


def cost(setting: Setting, varied: Mapping[str, Sequence[int]]) -> None:
    """What a step, a scoring and their memory grow with."""
    memory = "peak" if setting.device == "cuda" else "kept for the gradient"
    print(f"  cost, otherwise as {setting}")
    for name, values in varied.items():
        rows = []
        for value in values:
            one = replace(setting, **{name: value})  # type: ignore[arg-type]
            subject = Subject(one, untrained(one))
            step = statistics.median(_steps(one, {"ADS": subject.ads}, 2)["ADS"])
            score, held = statistics.median(subject.scoring()), subject.memory()
            rows.append((step, held))
            print(
                f"    {name:<9} {value:>3}   {step:6.3g} ms a step, {score:5.2g} ms a scoring, {held:5.3g} MiB {memory}"
            )
        step, held = (last / first for first, last in zip(rows[0], rows[-1], strict=True))
        print(f"    {values[-1] / values[0]:g} x the {name}: {step:.3g} x the step, {held:.3g} x the memory")
