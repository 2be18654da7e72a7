"""Imitation: the policy that a log shows, learnt from it alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from core import files
from core.checkpoint import Checkpoint
from core.errors import InputError, require
from core.nn.adam import minimise
from core.offline.dataset import OfflineDataset
from core.offline.mlp import evaluated, mlp
from core.rl.algorithm import TrainingDiverged
from core.rl.checkpoint import read_tensors
from core.seeds import stream

Progress = Callable[[float, str], None]
LOG_2PI = math.log(2 * math.pi)


class BehaviourCloning:
    """A network trained by maximum likelihood on the logged actions.

    Of a Discrete space it gives the probabilities of all actions (cross-entropy); of a Box a Gaussian whose mean is the
    network (squared error) and whose standard deviations are those of the residuals, the same everywhere.

    Args:
        hidden: sizes of the hidden layers (Linear, ReLU, and batch normalisation if wished); none makes it linear.
        batch_norm: see above.
        learning_rate: of Adam.
        weight_decay: of Adam, a squared penalty on all parameters.
        epochs: passes over the data; each leaves out the rows that fill no batch, other rows each time.
        batch: rows an update.
        top: share of the episodes, those of the largest return, that is imitated (0.1 is "10 % BC"); None for all.
        seed: of the initial weights and of the order of the rows.
        device: where to compute.

    Attributes:
        network: ``(N, do) -> (N, A)`` logits, or ``(N, da)`` standardised means; None until it is fitted or loaded.
        metadata: plain data of the caller that ``save`` keeps, such as a hash of the features.

    Raises:
        InputError: a number out of its range.
    """

    def __init__(
        self,
        *,
        hidden: Sequence[int] = (64, 64),
        batch_norm: bool = False,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        epochs: int = 100,
        batch: int = 64,
        top: float | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if epochs < 1 or batch < 1 + batch_norm:
            raise InputError(f"epochs = {epochs}, batch = {batch}; allowed: at least 1, and 2 with batch_norm")
        if top is not None and not 0.0 < top <= 1.0:
            raise InputError(f"top: {top}; allowed: (0, 1]")
        self.settings: dict[str, Any] = {
            **{"hidden": list(hidden), "batch_norm": batch_norm, "learning_rate": learning_rate},
            **{"weight_decay": weight_decay, "epochs": epochs, "batch": batch, "top": top, "seed": seed},
        }
        self.device = torch.device(device)
        self.network: nn.Sequential | None = None
        self.metadata: dict[str, Any] = {}

    def fit(
        self, dataset: OfflineDataset, *, checkpoint: Path | None = None, progress: Progress | None = None
    ) -> BehaviourCloning:
        """Train from the start, or go on from ``checkpoint``, bit for bit on the CPU.

        Raises:
            InputError: fewer than 2 rows with batch normalisation.
            TrainingDiverged: the loss is not finite; the network is that of the end of the last epoch.
        """
        s = self.settings
        if s["top"] is not None:
            best = dataset.episode_returns().argsort(descending=True, stable=True)
            dataset = dataset.take_episodes(best[: math.ceil(s["top"] * dataset.episodes)].sort().values)
        observations, actions = dataset.observations.to(self.device).float(), dataset.actions.to(self.device)
        batch = min(s["batch"], len(dataset))
        if batch < 1 + s["batch_norm"]:
            raise InputError(f"{dataset.name}: {len(dataset)} row; batch_norm needs 2")
        self._build(observations.shape[1], dataset.choices if dataset.discrete else actions.shape[1], dataset.discrete)
        network = self._fitted()
        if dataset.discrete:
            loss_of: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
        else:
            actions = actions.float()
            self.action_mean, spread = actions.mean(0), actions.std(0, correction=0)
            self.action_std = torch.where(spread > 0, spread, 1.0)
            actions = (actions - self.action_mean) / self.action_std
            loss_of = nn.functional.mse_loss
        batches = len(dataset) // batch
        seen, done, good, epoch = observations, actions, _copied(network), -1

        def loss(step: int) -> Tensor:
            nonlocal seen, done, good, epoch
            if step // batches != epoch:
                epoch = step // batches
                good = _copied(network)
                generator = torch.Generator().manual_seed(stream(s["seed"], f"epoch {epoch}"))
                order = torch.randperm(len(dataset), generator=generator)[: batches * batch].to(self.device)
                seen, done = observations[order], actions[order]
            rows = slice(step % batches * batch, (step % batches + 1) * batch)
            value = loss_of(network(seen[rows]), done[rows])
            if not math.isfinite(value.item()):
                network.load_state_dict(good)
                raise TrainingDiverged(f"{dataset.name}: the loss of epoch {epoch} is {value.item()}")
            return value

        minimise(
            dict(network.named_parameters()),
            loss,
            s["epochs"] * batches,
            learning_rate=s["learning_rate"],
            weight_decay=s["weight_decay"],
            buffers=dict(network.named_buffers()),
            checkpoint=Checkpoint(checkpoint),
            progress=progress,
        )
        network.eval()
        if not dataset.discrete:
            residual = (actions - evaluated(network, observations)) * self.action_std
            self.residual_std = residual.square().mean(0).sqrt()
        return self

    def probabilities(self, observations: Tensor) -> Tensor:
        """Probabilities ``(N, A)`` of the actions of a Discrete space.

        Raises:
            InputError: it is not fitted, to other observations, or to continuous actions.
        """
        return torch.softmax(self._outputs(observations, discrete=True), -1)

    def mean(self, observations: Tensor) -> Tensor:
        """Mean actions ``(N, da)`` of a Box, in its units.

        Raises:
            InputError: it is not fitted, to other observations, or to a Discrete space.
        """
        return self._outputs(observations, discrete=False) * self.action_std + self.action_mean

    def predict(self, observations: Tensor) -> Tensor:
        """The likeliest action of each of the N observations: ``(N,)`` int64, or ``(N, da)``."""
        return self.probabilities(observations).argmax(-1) if self.discrete else self.mean(observations)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log-probability, or log-density, ``(N,)`` of the actions ``(N,)`` or ``(N, da)``."""
        if self.discrete:
            log_probs = torch.log_softmax(self._outputs(observations, discrete=True), -1)
            return log_probs.gather(-1, actions.to(self.device)[:, None])[:, 0]
        z = (actions.to(self.device) - self.mean(observations)) / self.residual_std
        return -(z.square() / 2 + self.residual_std.log() + LOG_2PI / 2).sum(-1)

    def save(self, path: Path) -> None:
        """Write ``<path>.safetensors`` and ``<path>.json``, each atomically."""
        tensors = {f"network.{name}": x for name, x in self._fitted().state_dict().items()}
        tensors |= {name: getattr(self, name) for name in self._scales}
        sizes = {"observations": self.observations, "actions": self.actions, "discrete": self.discrete}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
        files.write(path.with_name(f"{path.name}.safetensors"), safetensors.torch.save(plain))
        record = {"settings": self.settings, **sizes, "metadata": self.metadata}
        files.write_json(path.with_name(f"{path.name}.json"), record)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> BehaviourCloning:
        """Read what ``save`` wrote.

        Raises:
            InputError: a file is missing or damaged, or the two do not fit.
        """
        path = Path(path)
        keys = ("settings", "observations", "actions", "discrete", "metadata")
        record = files.read_json(path.with_name(f"{path.name}.json"), keys)
        weights = path.with_name(f"{path.name}.safetensors")
        tensors = {name: x.to(device) for name, x in read_tensors(weights)[0].items()}
        model = cls(**record["settings"], device=device)
        model._build(record["observations"], record["actions"], record["discrete"])
        try:
            for name in model._scales:
                setattr(model, name, tensors.pop(name))
            model._fitted().load_state_dict({name.removeprefix("network."): x for name, x in tensors.items()})
        except (KeyError, RuntimeError) as error:
            raise InputError(f"{weights}: {' '.join(str(error).split())}") from error
        model._fitted().eval()
        model.metadata = record["metadata"]
        return model

    @property
    def _scales(self) -> tuple[str, ...]:
        return () if self.discrete else ("action_mean", "action_std", "residual_std")

    def _build(self, observations: int, actions: int, discrete: bool) -> None:
        self.observations, self.actions, self.discrete = observations, actions, discrete
        s = self.settings
        sizes = (observations, *s["hidden"], actions)
        self.network = mlp(sizes, s["seed"], batch_norm=s["batch_norm"]).to(self.device)
        self.action_mean, self.action_std, self.residual_std = (torch.empty(0) for _ in range(3))

    def _fitted(self) -> nn.Sequential:
        if self.network is None:
            raise InputError("BehaviourCloning: call fit first")
        return self.network

    def _outputs(self, observations: Tensor, *, discrete: bool) -> Tensor:
        network = self._fitted()
        if self.discrete != discrete:
            kinds = {True: "Discrete", False: "Box"}
            raise InputError(f"actions: those of a {kinds[discrete]}; it was fitted to a {kinds[self.discrete]}")
        if observations.shape[-1] != self.observations:
            raise InputError(f"observations: {observations.shape[-1]} numbers; it was fitted to {self.observations}")
        return evaluated(network, observations.to(self.device))


class NearestNeighbourBehaviour:
    """Behaviour probabilities as the shares of actions among the k nearest logged observations, standardised.

    (count + smoothing) / (k + A smoothing). A row that was fitted is its own nearest neighbour: evaluate on others.

    Args:
        k: neighbours; all rows where there are fewer.
        smoothing: added to each count; no probability is then 0.

    Raises:
        InputError: k below 1 or a negative smoothing.
    """

    def __init__(self, k: int = 100, smoothing: float = 0.01) -> None:
        if k < 1 or smoothing < 0:
            raise InputError(f"k = {k}, smoothing = {smoothing}; allowed: k of at least 1, smoothing of at least 0")
        self.k, self.smoothing = k, smoothing
        self._search: Any = None

    def fit(self, dataset: OfflineDataset) -> NearestNeighbourBehaviour:
        """Keep the rows.

        Raises:
            InputError: the actions are continuous.
            MissingExtra: scikit-learn is not installed.
        """
        neighbours = require("sklearn.neighbors", "sepsis")
        self.choices, self._actions = dataset.choices, dataset.actions.cpu()
        data, self._scale = dataset.to("cpu").normalised()
        self._search = neighbours.NearestNeighbors(n_neighbors=min(self.k, len(dataset))).fit(data.observations.numpy())
        return self

    def probabilities(self, observations: Tensor) -> Tensor:
        """Probabilities ``(N, A)``.

        Raises:
            InputError: nothing was fitted.
        """
        if self._search is None:
            raise InputError("NearestNeighbourBehaviour: call fit first")
        found = self._search.kneighbors(self._scale.apply(observations.cpu()).numpy(), return_distance=False)
        taken = self._actions[torch.from_numpy(found)]
        counts = torch.zeros(len(taken), self.choices).scatter_add_(1, taken, torch.ones(taken.shape))
        shares = (counts + self.smoothing) / (taken.shape[1] + self.choices * self.smoothing)
        return shares.to(observations.device)


def _copied(network: nn.Module) -> Mapping[str, Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items()}
